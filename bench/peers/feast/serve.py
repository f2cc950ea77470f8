"""Feast's feature server on its SQLite online store, with one view of floats for one entity, filled from
FRAME (Parquet: account, event_timestamp and the features' columns) as its documentation shows. FOLDER is its
own; the server is its own too: gunicorn with one uvicorn worker, no access log."""
import os
import sys
from datetime import timedelta
from pathlib import Path

import pandas as pd
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, ValueType
from feast.types import Float64

folder = Path(os.environ["FOLDER"])
frame = Path(os.environ["FRAME"])
columns = pd.read_parquet(frame)
names = [name for name in columns.columns if name not in ("account", "event_timestamp")]

folder.mkdir(parents=True, exist_ok=True)
(folder / "feature_store.yaml").write_text(
    f"project: bench\nprovider: local\nregistry: {folder}/registry.db\nentity_key_serialization_version: 3\n"
    f"online_store:\n  type: sqlite\n  path: {folder}/online.db\n"
)
store = FeatureStore(repo_path=str(folder))
account = Entity(name="account", join_keys=["account"], value_type=ValueType.INT64)
profile = FeatureView(
    name="profile",
    entities=[account],
    ttl=timedelta(days=3650),
    schema=[Field(name=name, dtype=Float64) for name in names],
    source=FileSource(path=str(frame), timestamp_field="event_timestamp"),
)
store.apply([account, profile])
store.write_to_online_store("profile", df=columns)
sys.argv = ["feast"]  # gunicorn would read ours
store.serve("127.0.0.1", int(os.environ["PORT"]), workers=1, no_access_log=True)
