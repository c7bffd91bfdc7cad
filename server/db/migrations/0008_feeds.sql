-- The feed of changes, webhooks, views for BI tools.

update schema_compatibility set version = 8, compatible_from = 8;
