-- Experiments and their register.

update schema_compatibility set version = 6, compatible_from = 6;
