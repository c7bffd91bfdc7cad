-- Questionnaires of kiosks and phones, their tokens and answers.

update schema_compatibility set version = 5, compatible_from = 5;
