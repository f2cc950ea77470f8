-- Rows that a version must reproduce before it serves: an artifact, by its digest.

ALTER TABLE versions ADD COLUMN golden TEXT CHECK (golden IS NULL OR length(golden) = 64);
