-- KPIs: targets, rosters, campaigns, rates of exchange.

update schema_compatibility set version = 3, compatible_from = 3;
