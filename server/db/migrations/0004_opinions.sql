-- The misuse filter, alerts of dissatisfaction, actions.

update schema_compatibility set version = 4, compatible_from = 4;
