-- Models, versions, alias history, runs, decisions. Times are milliseconds since the Unix epoch.
--
-- Append-only tables refuse UPDATE and DELETE by trigger, and INSERT over an existing row too:
-- SQLite's INSERT OR REPLACE deletes without firing delete triggers.

CREATE TABLE models (
  name TEXT PRIMARY KEY,
  created_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE experiments (
  id INTEGER PRIMARY KEY,
  name TEXT NOT NULL UNIQUE
) STRICT;

CREATE TABLE runs (
  id TEXT PRIMARY KEY,
  ordinal INTEGER NOT NULL UNIQUE,                  -- order of starting
  experiment INTEGER NOT NULL REFERENCES experiments (id),
  model TEXT NOT NULL REFERENCES models (name),
  parent TEXT REFERENCES runs (id),
  trigger_decision INTEGER REFERENCES decisions (id),
  name TEXT NOT NULL,
  seed INTEGER NOT NULL,                            -- the bits of an unsigned 64-bit number
  owner_pid INTEGER NOT NULL,
  as_of_ms INTEGER NOT NULL,
  started_ms INTEGER NOT NULL,
  finished_ms INTEGER,
  status TEXT NOT NULL CHECK (status IN ('running', 'finished', 'failed', 'killed')),
  outcome TEXT,
  CHECK ((status = 'running') = (finished_ms IS NULL)),
  CHECK ((status = 'running') = (outcome IS NULL))
) STRICT, WITHOUT ROWID;
CREATE INDEX runs_by_model ON runs (model, ordinal);
CREATE INDEX runs_by_parent ON runs (parent, ordinal) WHERE parent IS NOT NULL;
CREATE INDEX runs_running ON runs (model, ordinal) WHERE status = 'running';

CREATE TRIGGER runs_end_once BEFORE UPDATE ON runs WHEN OLD.status <> 'running'
BEGIN SELECT RAISE(ABORT, 'a run that has ended cannot change'); END;
CREATE TRIGGER runs_keep BEFORE DELETE ON runs
BEGIN SELECT RAISE(ABORT, 'a run cannot be deleted'); END;
CREATE TRIGGER runs_insert_once BEFORE INSERT ON runs
WHEN EXISTS (SELECT 1 FROM runs WHERE id = NEW.id)
BEGIN SELECT RAISE(ABORT, 'a run cannot be replaced'); END;

CREATE TABLE run_params (
  run TEXT NOT NULL REFERENCES runs (id),
  key TEXT NOT NULL,
  value TEXT NOT NULL,
  PRIMARY KEY (run, key)
) STRICT, WITHOUT ROWID;

CREATE TABLE run_metrics (
  run TEXT NOT NULL REFERENCES runs (id),
  key TEXT NOT NULL,
  step INTEGER NOT NULL,
  at_ms INTEGER NOT NULL,
  value REAL,                                       -- null is NaN, which SQLite cannot store
  PRIMARY KEY (run, key, step, at_ms)
) STRICT, WITHOUT ROWID;

CREATE TABLE run_tags (
  run TEXT NOT NULL REFERENCES runs (id),
  key TEXT NOT NULL,
  value TEXT NOT NULL,
  PRIMARY KEY (run, key)
) STRICT, WITHOUT ROWID;

CREATE TABLE datasets (
  id INTEGER PRIMARY KEY,
  name TEXT NOT NULL,
  digest TEXT NOT NULL,
  rows INTEGER NOT NULL,
  from_ms INTEGER NOT NULL,
  to_ms INTEGER NOT NULL,
  source TEXT NOT NULL,                             -- JSON
  UNIQUE (name, digest, rows, from_ms, to_ms, source)
) STRICT;

CREATE TABLE run_datasets (
  run TEXT NOT NULL REFERENCES runs (id),
  dataset INTEGER NOT NULL REFERENCES datasets (id),
  role TEXT NOT NULL,
  PRIMARY KEY (run, dataset, role)
) STRICT, WITHOUT ROWID;

CREATE TABLE versions (
  model TEXT NOT NULL REFERENCES models (name),
  version INTEGER NOT NULL CHECK (version BETWEEN 1 AND 4294967295),
  artifact TEXT NOT NULL CHECK (length(artifact) = 64),
  signature TEXT NOT NULL,                          -- JSON
  service TEXT,
  run TEXT REFERENCES runs (id),
  algorithm TEXT NOT NULL,
  metrics TEXT NOT NULL,                            -- JSON object of numbers
  description TEXT NOT NULL,
  created_ms INTEGER NOT NULL,
  PRIMARY KEY (model, version)
) STRICT, WITHOUT ROWID;

CREATE TRIGGER versions_immutable BEFORE UPDATE ON versions
BEGIN SELECT RAISE(ABORT, 'a version cannot change'); END;
CREATE TRIGGER versions_keep BEFORE DELETE ON versions
BEGIN SELECT RAISE(ABORT, 'a version cannot be deleted'); END;
CREATE TRIGGER versions_insert_next BEFORE INSERT ON versions
WHEN NEW.version <> (SELECT coalesce(max(version), 0) + 1 FROM versions WHERE model = NEW.model)
BEGIN SELECT RAISE(ABORT, 'a version takes the next number of its model'); END;

-- Written before its version in the same transaction, and closed by it.
CREATE TABLE version_datasets (
  model TEXT NOT NULL,
  version INTEGER NOT NULL,
  dataset INTEGER NOT NULL REFERENCES datasets (id),
  role TEXT NOT NULL,
  PRIMARY KEY (model, version, dataset, role),
  FOREIGN KEY (model, version) REFERENCES versions (model, version) DEFERRABLE INITIALLY DEFERRED
) STRICT, WITHOUT ROWID;

CREATE TRIGGER version_datasets_immutable BEFORE UPDATE ON version_datasets
BEGIN SELECT RAISE(ABORT, 'a version cannot change'); END;
CREATE TRIGGER version_datasets_keep BEFORE DELETE ON version_datasets
BEGIN SELECT RAISE(ABORT, 'a version cannot change'); END;
CREATE TRIGGER version_datasets_closed BEFORE INSERT ON version_datasets
WHEN EXISTS (SELECT 1 FROM versions WHERE model = NEW.model AND version = NEW.version)
BEGIN SELECT RAISE(ABORT, 'a version cannot change'); END;

-- An alias is what its newest event says. The changes of one transaction share a generation.
CREATE TABLE alias_events (
  generation INTEGER NOT NULL,
  model TEXT NOT NULL REFERENCES models (name),
  alias TEXT NOT NULL,
  from_version INTEGER,
  to_version INTEGER,
  reason TEXT NOT NULL,
  at_ms INTEGER NOT NULL,
  PRIMARY KEY (generation, alias),
  FOREIGN KEY (model, to_version) REFERENCES versions (model, version),
  CHECK (from_version IS NOT to_version)
) STRICT, WITHOUT ROWID;
CREATE INDEX alias_events_by_alias ON alias_events (model, alias, generation);

CREATE TRIGGER alias_events_immutable BEFORE UPDATE ON alias_events
BEGIN SELECT RAISE(ABORT, 'alias history cannot change'); END;
CREATE TRIGGER alias_events_keep BEFORE DELETE ON alias_events
BEGIN SELECT RAISE(ABORT, 'alias history cannot be deleted'); END;
CREATE TRIGGER alias_events_continue BEFORE INSERT ON alias_events
WHEN NEW.from_version IS NOT
  (SELECT to_version FROM alias_events WHERE model = NEW.model AND alias = NEW.alias
   ORDER BY generation DESC LIMIT 1)
BEGIN SELECT RAISE(ABORT, 'alias history would have a gap'); END;
CREATE TRIGGER alias_events_count BEFORE INSERT ON alias_events
WHEN NEW.generation <> (SELECT coalesce(max(generation), 0) + 1 FROM alias_events)
  AND NOT EXISTS (SELECT 1 FROM alias_events
    WHERE generation = NEW.generation AND model = NEW.model
      AND generation = (SELECT max(generation) FROM alias_events))
BEGIN SELECT RAISE(ABORT, 'alias generations would have a gap'); END;
CREATE TRIGGER alias_events_insert_once BEFORE INSERT ON alias_events
WHEN EXISTS (SELECT 1 FROM alias_events WHERE generation = NEW.generation AND alias = NEW.alias)
BEGIN SELECT RAISE(ABORT, 'alias history cannot be replaced'); END;

CREATE TABLE decisions (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  model TEXT NOT NULL REFERENCES models (name),
  kind TEXT NOT NULL,
  outcome TEXT NOT NULL,
  reason TEXT NOT NULL,
  run TEXT REFERENCES runs (id),
  version INTEGER,
  evidence TEXT NOT NULL,                           -- JSON
  evidence_hash TEXT NOT NULL CHECK (length(evidence_hash) = 64),
  at_ms INTEGER NOT NULL,
  UNIQUE (model, kind, evidence_hash),
  FOREIGN KEY (model, version) REFERENCES versions (model, version)
) STRICT;
CREATE INDEX decisions_by_model ON decisions (model, id);
CREATE INDEX decisions_by_run ON decisions (run) WHERE run IS NOT NULL;

CREATE TRIGGER decisions_immutable BEFORE UPDATE ON decisions
BEGIN SELECT RAISE(ABORT, 'a decision cannot change'); END;
CREATE TRIGGER decisions_keep BEFORE DELETE ON decisions
BEGIN SELECT RAISE(ABORT, 'a decision cannot be deleted'); END;
CREATE TRIGGER decisions_insert_once BEFORE INSERT ON decisions
WHEN EXISTS (SELECT 1 FROM decisions
  WHERE id = NEW.id
    OR (model = NEW.model AND kind = NEW.kind AND evidence_hash = NEW.evidence_hash))
BEGIN SELECT RAISE(ABORT, 'a decision cannot be replaced'); END;
