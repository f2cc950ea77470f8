"""Feast's own client on `online_store: {type: remote}`: the project of a Feast user, with ours beside it."""
import datetime
import json
import pathlib
import tempfile
import urllib.error
import urllib.request
import warnings

import feast
import pandas
from feast import Entity, FeatureService, FeatureStore, FeatureView, Field, FileSource, PushSource, ValueType
from feast.errors import (
    FeastError,
    FeatureNameCollisionError,
    FeatureServiceNotFoundException,
    FeatureViewNotFoundException,
    PushSourceNotFoundException,
)
from feast.data_source import RequestSource
from feast.on_demand_feature_view import on_demand_feature_view
from feast.protos.feast.serving.ServingService_pb2 import FieldStatus
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.types import Bool, Float64, Int64, String

from gateway import Gateway

# What features.toml says of the same views: a view of latest values for each feature view, a service.
FEATURES = """
[[source]]
name = "driver_stats"
time = "event_timestamp"
id = ["driver_id", "event_timestamp"]
fields = { driver_id = "int", event_timestamp = "time", conv_rate = "float?", avg_daily_trips = "int?", city = "string?", active = "bool?" }

[[view]]
name = "driver_hourly_stats"
source = "driver_stats"
keys = ["driver_id"]
ttl = "1d"
features = [{ last = "conv_rate", name = "conv_rate" }, { last = "avg_daily_trips", name = "avg_daily_trips" }, { last = "city", name = "city" }, { last = "active", name = "active" }]

[[source]]
name = "trip_stats"
time = "event_timestamp"
id = ["driver_id", "rider_id", "event_timestamp"]
fields = { driver_id = "int", rider_id = "string", event_timestamp = "time", fare = "float" }

[[view]]
name = "fares"
source = "trip_stats"
keys = ["driver_id"]
windows = ["1d"]
features = [{ count = true }, { sum = "fare" }]

[[view]]
name = "pair_fares"
source = "trip_stats"
keys = ["driver_id", "rider_id"]
features = [{ last = "fare", name = "fare" }]

[[service]]
name = "driver_activity"
version = 1
request = { driver_id = "int", val_to_add = "float" }
features = [{ view = "driver_hourly_stats", features = ["conv_rate", "avg_daily_trips"] }, { request = "val_to_add" }]
"""

warnings.filterwarnings("ignore", "On demand feature view", RuntimeWarning)

NOW = datetime.datetime.now(datetime.timezone.utc).replace(microsecond=0)
HOUR = datetime.timedelta(hours=1)


class Project:
    """A gateway with those features, and the store of a Feast project that points at it."""

    def __init__(self, settings=""):
        self.folder = tempfile.TemporaryDirectory()
        folder = pathlib.Path(self.folder.name)
        self.gateway = Gateway.of_project({"features.toml": FEATURES, "loopgate.toml": settings})
        (folder / "feature_store.yaml").write_text(
            f"""project: drivers
registry: {folder}/registry.db
provider: local
online_store: {{type: remote, path: "http://{self.gateway.http}"}}
entity_key_serialization_version: 3
"""
        )
        self.store = FeatureStore(repo_path=str(folder))
        self.apply()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.gateway.__exit__()
        self.folder.cleanup()

    def apply(self):
        driver = Entity(name="driver", join_keys=["driver_id"], value_type=ValueType.INT64)
        rider = Entity(name="rider", join_keys=["rider_id"], value_type=ValueType.STRING)
        file = lambda name: FileSource(name=f"{name}_file", path=f"{name}.parquet", timestamp_field="event_timestamp")
        stats = PushSource(name="driver_stats", batch_source=file("driver_stats"))
        self.view = FeatureView(
            name="driver_hourly_stats",
            entities=[driver],
            ttl=datetime.timedelta(days=1),
            schema=[
                Field(name="conv_rate", dtype=Float64),
                Field(name="avg_daily_trips", dtype=Int64),
                Field(name="city", dtype=String),
                Field(name="active", dtype=Bool),
            ],
            source=stats,
        )
        pairs = FeatureView(
            name="pair_fares", entities=[driver, rider], schema=[Field(name="fare", dtype=Float64)], source=file("trip_stats")
        )

        @on_demand_feature_view(
            sources=[RequestSource(name="added", schema=[Field(name="val_to_add", dtype=Float64)])],
            schema=[Field(name="val_to_add_twice", dtype=Float64)],
        )
        def added(inputs: pandas.DataFrame) -> pandas.DataFrame:
            return pandas.DataFrame({"val_to_add_twice": inputs["val_to_add"] * 2})

        self.service = FeatureService(name="driver_activity", features=[self.view[["conv_rate", "avg_daily_trips"]], added])
        self.store.apply([driver, rider, self.view, pairs, added, self.service])

    def frame(self):
        return pandas.DataFrame(
            {
                "driver_id": [1001, 1002, 1003],
                "conv_rate": [0.1, None, 0.3],
                "avg_daily_trips": [7, 9, 11],
                "city": ["Zürich", None, "Rome"],
                "active": [True, False, True],
                "event_timestamp": [NOW - HOUR, NOW - HOUR, NOW - 48 * HOUR],
            }
        )

    def get(self, features, rows, **more):
        return self.store.get_online_features(features=features, entity_rows=rows, **more)

    def post(self, path, body):
        """Status and JSON of a request by hand."""
        request = urllib.request.Request(
            f"http://{self.gateway.http}{path}", json.dumps(body).encode(), {"content-type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, json.loads(answer.read() or "null")
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())


def statuses(response, name):
    """The statuses of one column, as the client has them."""
    column = list(response.proto.metadata.feature_names.val).index(name)
    return [FieldStatus.Name(status) for status in response.proto.results[column].statuses]


def raises(error, act):
    try:
        act()
    except error as raised:
        return raised
    raise AssertionError(f"no {error.__name__}")


REFERENCES = [f"driver_hourly_stats:{name}" for name in ("conv_rate", "avg_daily_trips", "city", "active")]
ROWS = [{"driver_id": driver} for driver in (1001, 1002, 1003, 7, 1001)]


def test_a_view_that_counts_events_cannot_be_written(_):
    with Project() as project:
        frame = {"driver_id": [1], "fare": [1.0], "event_timestamp": [NOW.isoformat()]}
        status, said = project.post("/write-to-online-store", {"feature_view_name": "fares", "df": frame})
        assert status == 400 and "push them to source `trip_stats`" in json.loads(said)["message"], said


def test_what_is_written_is_read_by_reference(_):
    with Project() as project:
        project.store.write_to_online_store("driver_hourly_stats", project.frame())
        response = project.get(REFERENCES, ROWS)
        assert response.to_dict() == {
            "driver_id": [1001, 1002, 1003, 7, 1001],
            "conv_rate": [0.1, None, None, None, 0.1],
            "avg_daily_trips": [7, 9, None, None, 7],
            "city": ["Zürich", None, None, None, "Zürich"],
            "active": [True, False, None, None, True],
        }, response.to_dict()
        assert statuses(response, "conv_rate") == ["PRESENT", "NULL_VALUE", "OUTSIDE_MAX_AGE", "NOT_FOUND", "PRESENT"]
        assert statuses(response, "avg_daily_trips") == ["PRESENT", "PRESENT", "OUTSIDE_MAX_AGE", "NOT_FOUND", "PRESENT"]
        frame = project.get(REFERENCES[:1], ROWS[:1]).to_df()
        assert list(frame.columns) == ["driver_id", "conv_rate"] and len(frame) == 1
        full = project.get(REFERENCES[:2], ROWS[:1], full_feature_names=True).to_dict()
        assert full == {"driver_id": [1001], "driver_hourly_stats__conv_rate": [0.1], "driver_hourly_stats__avg_daily_trips": [7]}
        versions = project.get(REFERENCES[:1], ROWS[:1], include_feature_view_version_metadata=True)
        found = [(view.name, view.version) for view in versions.proto.metadata.feature_view_metadata]
        assert found == [("driver_hourly_stats", 1)], found


def test_keys_of_two_columns_and_columns_of_entities(_):
    with Project() as project:
        frame = pandas.DataFrame(
            {"driver_id": [1, 1], "rider_id": ["a", "b"], "fare": [2.5, 3.5], "event_timestamp": [NOW - HOUR] * 2}
        )
        project.store.write_to_online_store("pair_fares", frame)
        entities = {"driver_id": [1, 1, 2], "rider_id": ["b", "a", "a"]}
        response = project.store.get_online_features(features=["pair_fares:fare", "fares:sum_fare_1d"], entity_rows=entities)
        assert response.to_dict() == {
            "driver_id": [1, 1, 2], "rider_id": ["b", "a", "a"], "fare": [3.5, 2.5, None], "sum_fare_1d": [6.0, 6.0, None]
        }, response.to_dict()


def test_a_push_goes_to_every_view_of_its_source(_):
    with Project() as project:
        project.store.push("driver_stats", project.frame())
        response = project.get(REFERENCES, ROWS)
        assert response.to_dict()["city"] == ["Zürich", None, None, None, "Zürich"]
        newer = project.frame().assign(city="Bern", event_timestamp=NOW)
        project.store.push("driver_stats", newer)
        assert project.get(REFERENCES, ROWS).to_dict()["city"] == ["Bern", "Bern", "Bern", None, "Bern"]
        older = project.frame().assign(city="Aarau", event_timestamp=NOW - 2 * HOUR)
        project.store.push("driver_stats", older)
        assert project.get(REFERENCES, ROWS).to_dict()["city"] == ["Bern", "Bern", "Bern", None, "Bern"]


def test_a_feature_service_with_request_data(_):
    with Project() as project:
        project.store.write_to_online_store("driver_hourly_stats", project.frame())
        rows = [{"driver_id": driver, "val_to_add": driver / 2} for driver in (1001, 7)]
        response = project.get(project.service, rows)
        assert response.to_dict() == {
            "driver_id": [1001, 7],
            "conv_rate": [float(pandas.Series([0.1], dtype="float32")[0]), None],
            "avg_daily_trips": [7.0, None],
            "val_to_add": [500.5, 3.5],
        }, response.to_dict()
        assert statuses(response, "conv_rate") == ["PRESENT", "NOT_FOUND"]


def test_an_error_is_raised_as_the_class_that_feast_has_for_it(_):
    with Project() as project:
        raised = raises(FeatureViewNotFoundException, lambda: project.get(["none:x"], ROWS))
        assert "Feature view none does not exist" in str(raised)
        service = FeatureService(name="none", features=[project.view])
        raises(FeatureServiceNotFoundException, lambda: project.get(service, ROWS))
        both = ["driver_hourly_stats:city", "driver_hourly_stats:city"]
        raises(FeatureNameCollisionError, lambda: project.get(both, ROWS))
        raised = raises(FeastError, lambda: project.get(REFERENCES, [{"driver": 1}]))
        assert "join key `driver_id`" in str(raised), raised
        raised = raises(FeastError, lambda: project.get(REFERENCES, [{"driver_id": "x"}]))
        assert "column `driver_id`, row 0: expected int, found `x`" in str(raised), raised
        status, said = project.post(
            "/write-to-online-store",
            {"feature_view_name": "driver_hourly_stats", "df": {"driver_id": [1], "event_timestamp": [NOW.isoformat()]}},
        )
        assert status == 400 and "written whole" in json.loads(said)["message"], said
        status, said = project.post("/push", {"push_source_name": "none", "df": {"a": [1]}})
        assert status == 422 and isinstance(FeastError.from_error_detail(said), PushSourceNotFoundException)


def test_statuses_are_feasts_own_where_that_is_asked_for(_):
    with Project("[feast]\ncompat = true\n") as project:
        project.store.write_to_online_store("driver_hourly_stats", project.frame())
        response = project.get(REFERENCES, ROWS)
        assert response.to_dict()["conv_rate"] == [0.1, None, 0.3, None, 0.1]
        assert statuses(response, "conv_rate") == ["PRESENT", "PRESENT", "PRESENT", "NOT_FOUND", "PRESENT"]


def test_the_recorded_shapes_over_plain_http(_):
    with Project() as project:
        at = (NOW - HOUR).replace(tzinfo=None).isoformat()
        frame = {"driver_id": [1001], "conv_rate": [0.5], "avg_daily_trips": [7], "city": [None], "active": [True],
                 "event_timestamp": [at], "created": [None]}
        write = {"feature_view_name": "driver_hourly_stats", "df": frame, "allow_registry_cache": False}
        assert project.post("/write-to-online-store", write) == (200, None)
        status, answer = project.post(
            "/get-online-features", {"features": REFERENCES[:1], "entities": {"driver_id": [1001, 7]}}
        )
        epoch = "1970-01-01T00:00:00Z"
        assert (status, answer) == (
            200,
            {
                "results": [
                    {"values": [1001, 7], "statuses": ["PRESENT"] * 2, "event_timestamps": [epoch] * 2},
                    {"values": [0.5, None], "statuses": ["PRESENT", "NOT_FOUND"], "event_timestamps": [f"{at}Z", epoch]},
                ],
                "metadata": {"feature_names": ["driver_id", "conv_rate"]},
            },
        ), answer
        push = {"push_source_name": "driver_stats", "df": frame, "to": "online_and_offline", "transform_on_write": True}
        assert project.post("/push", push) == (200, None)
        ranged = {"start_ts": "2024-01-01T00:00:00", "end_ts": "2024-02-01T00:00:00"}
        assert project.post("/materialize", ranged) == (200, None)
        status, answer = project.post("/materialize-incremental?async=true", {"end_ts": "2024-02-01"})
        assert status == 202 and answer["status"] == "accepted" and "driver_hourly_stats" in answer["feature_views"]
        with urllib.request.urlopen(f"http://{project.gateway.http}/health", timeout=30) as health:
            assert health.status == 200


def test_the_reader_of_rows_that_older_callers_use(_):
    """`online_read`, which reads one view for encoded keys and wants statuses and times."""
    with Project() as project:
        project.store.write_to_online_store("driver_hourly_stats", project.frame())
        keys = [EntityKey(join_keys=["driver_id"], entity_values=[Value(int64_val=driver)]) for driver in (1001, 7)]
        online = project.store._get_provider().online_store
        view = project.store.get_feature_view("driver_hourly_stats")
        rows = online.online_read(project.store.config, view, keys, ["conv_rate", "city"])
        assert rows[0][0] == NOW - HOUR, rows
        assert rows[0][1]["conv_rate"].double_val == 0.1 and rows[0][1]["city"].string_val == "Zürich"
        assert rows[1][1]["conv_rate"].WhichOneof("val") is None
        return f"feast {feast.__version__}"
