-- Run once, in the database that the image creates. Where the image is one of Citus, its workers get no copy.
DO $$
BEGIN
    PERFORM pg_catalog.set_config('citus.enable_ddl_propagation', 'off', false);
END
$$;
CREATE EXTENSION foreshard;
-- Who the exporter is: it may look. Its password is set below from the environment.
CREATE ROLE foreshard_exporter LOGIN IN ROLE pg_monitor;
