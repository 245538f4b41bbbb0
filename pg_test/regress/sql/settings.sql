-- Every setting with its default, unit, range and meaning.
\set SHOW_CONTEXT never
CREATE EXTENSION foreshard;
SELECT name, boot_val AS "default", unit, min_val, max_val, enumvals, context, short_desc
FROM pg_settings WHERE name LIKE 'foreshard.%' ORDER BY name COLLATE "C" \gx

-- Misspelt names are not accepted silently.
SET foreshard.bukket = 3;
\echo :SQLSTATE
SET foreshard.bucket = 3;
\echo :SQLSTATE
SET foreshard.min_confidence = 2;
\echo :SQLSTATE
SET foreshard.min_confidence = 0.5;
SHOW foreshard.min_confidence;
CREATE ROLE foreshard_regress_user;
SET ROLE foreshard_regress_user;
SET foreshard.min_confidence = 0.1;
\echo :SQLSTATE
RESET ROLE;
DROP ROLE foreshard_regress_user;
