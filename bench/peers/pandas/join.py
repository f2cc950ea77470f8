"""The point-in-time join of the flights in pandas: every window and latest value of `delay@1`.

Running totals of each key and two `merge_asof` for each window: the totals at the question, less those
before the window's first tile. That is the quick way; `groupby().rolling()` at each question is slower.
A key is one integer, which groups and joins faster than its strings. Windows begin at a tile, as
Loopgate's do, so the values must agree. FOLDER holds the history as Parquet,
DATASET Loopgate's rows of the same questions; prints what it took and how many values differ as JSON.
"""

import json
import os
import resource
import time

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

TILES = 12
HOUR_MS = 3_600_000
UNITS_MS = {"h": HOUR_MS, "d": 24 * HOUR_MS}
TIMES = {
    "aircraft": "registered_at",
    "weather": "observed_at",
    "schedules": "scheduled_at",
    "departures": "departed_at",
    "arrivals": "known_at",
}
KEYS = {
    "all": [],
    "origin": ["origin"],
    "carrier": ["carrier"],
    "carrier_origin": ["carrier", "origin"],
    "dest": ["dest"],
    "tail": ["tailnum"],
}
TTL_MS = {"origin_weather": 6 * HOUR_MS}
ZERO = {"all_cancellations", "origin_cancellations"}
MINUENDS = {"overdue": ("schedules", "departures")}


def read(folder, name):
    return pq.read_table(os.path.join(folder, f"{name}.parquet")).replace_schema_metadata(None).to_pandas()


def number_keys(tables):
    """Adds a column for each entity to each table that has its columns: its number, or -1 where one is null."""
    names = {name for keys in KEYS.values() for name in keys}
    words = {name: pd.Index(pd.unique(pd.concat([t[name] for t in tables if name in t]).dropna())) for name in names}
    for table in tables:
        codes = {name: words[name].get_indexer(table[name]) for name in names if name in table}
        for entity, keys in KEYS.items():
            if all(name in codes for name in keys):
                number = np.zeros(len(table), dtype="int64")
                for name in keys:
                    number = np.where((number < 0) | (codes[name] < 0), -1, number * len(words[name]) + codes[name])
                table[f"key {entity}"] = number


class View:
    """Events of a view in order of time, with the running totals of each key."""

    def __init__(self, name, sources, questions):
        entity, source = name.rsplit("_", 1)
        events = sources["arrivals" if source == "cancellations" else source]
        if source == "cancellations":
            events = events[events["cancelled"]]
        self.name, self.key = name, f"key {entity}"
        self.questions = questions
        events = events[events[self.key] >= 0]
        self.time = TIMES["arrivals" if source == "cancellations" else source]
        self.events = events.rename(columns={self.time: "at"})
        self.ends = {}

    def total(self, field):
        """Name of the column with the running total of a field; of the rows where it is None."""
        column = f"total {field}"
        if column not in self.events:
            values = pd.Series(1.0, self.events.index) if field is None else self.events[field].astype("float64")
            by = self.events[self.key]
            for suffix, terms in (("", values.fillna(0.0)), (" present", values.notna().astype("float64"))):
                self.events[column + suffix] = terms.groupby(by, sort=False).cumsum()
        return column

    def asof(self, columns, times, exact, tolerance=None):
        """The columns as of each question's time."""
        asked = self.questions[[self.key]].assign(at=times, row=np.arange(len(times)))
        asked = asked[asked[self.key] >= 0].sort_values("at", kind="stable")
        found = pd.merge_asof(
            asked,
            self.events[["at", self.key, *columns]],
            on="at",
            by=self.key,
            allow_exact_matches=exact,
            tolerance=tolerance,
        )
        return found.set_index("row")[columns].reindex(np.arange(len(times)))

    def window(self, field, length_ms):
        """Sum and count of a field's values in the window; NaN for a key that was never seen."""
        column = self.total(field)
        columns = [column, column + " present"]
        if field not in self.ends:
            self.ends[field] = self.asof(columns, self.questions["at"].to_numpy(), True)
        tile = length_ms // TILES
        first = (self.questions["at"].to_numpy() // tile - (TILES - 1)) * tile
        both = self.ends[field] - self.asof(columns, first, False).fillna(0.0)
        return both[column].to_numpy(), both[columns[1]].to_numpy()

    def feature(self, name):
        if name.startswith("last_"):
            field = name.removeprefix("last_")
            return self.asof([field], self.questions["at"].to_numpy(), True, TTL_MS.get(self.name))[field].to_numpy()
        if name == "age_of_last":
            self.events["last"] = self.events["at"]
            last = self.asof(["last"], self.questions["at"].to_numpy(), True)["last"]
            return (self.questions["at"].to_numpy() - last.to_numpy()) / HOUR_MS
        kind, rest = name.split("_", 1)
        field, _, window = rest.rpartition("_")
        length_ms = int(window[:-1]) * UNITS_MS[window[-1]]
        with np.errstate(invalid="ignore", divide="ignore"):
            total, count = self.window(field or None, length_ms)
            values = count if kind == "count" else total / count
        return np.nan_to_num(values) if self.name in ZERO else values


def main():
    folder, dataset = os.environ["FOLDER"], os.environ["DATASET"]
    names = [name for name in pq.read_schema(dataset).names[4:]]
    began, cpu_began = time.perf_counter(), time.process_time()
    sources = {name: read(folder, name) for name in TIMES}
    # As a dataset has them: those whose outcome came within the history.
    questions = read(folder, "questions").dropna(subset="label").reset_index(drop=True)
    number_keys([*sources.values(), questions])
    views, columns = {}, {}

    def feature(view, name):
        if view not in views:
            views[view] = View(view, sources, questions)
        return views[view].feature(name)

    for name in names:
        if ":" in name:
            columns[name] = feature(*name.split(":"))
        elif "_overdue_" in name:
            entity, window = name.split("_overdue_")
            due, gone = (feature(f"{entity}_{source}", f"count_{window}") for source in MINUENDS["overdue"])
            columns[name] = due - gone
    joined = pd.DataFrame(columns).astype("float32")
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu_began
    ours = pq.read_table(dataset).to_pandas().sort_values(["at", "request_id"], kind="stable")
    order = questions.sort_values(["at", "request_id"], kind="stable").index
    differing = 0
    for name in joined:
        a, b = joined[name].to_numpy()[order], ours[name].to_numpy()
        differing += int((~np.isclose(a, b, rtol=1e-3, atol=1e-3, equal_nan=True)).sum())
    usage = resource.getrusage(resource.RUSAGE_SELF)
    print(
        json.dumps(
            {
                "rows": len(joined),
                "features": len(columns),
                "seconds": seconds,
                "cpu_seconds": cpu_seconds,
                "peak_mib": usage.ru_maxrss / 1024,
                "differing": differing,
            }
        )
    )


main()
