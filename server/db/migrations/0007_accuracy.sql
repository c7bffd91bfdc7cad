-- Recounts of counters, and sheets that follow from them.

update schema_compatibility set version = 7, compatible_from = 7;
