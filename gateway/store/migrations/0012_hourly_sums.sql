-- Writers of usage_hourly wait for each other before they have any row of it, not behind (0010): a flusher that isolates
-- a bad row writes it several times in one transaction, and would wait in a circle with one that has a row that it needs.
CREATE FUNCTION usage_hourly_in_turn() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(2818, 10);         -- as usage_by_meter_follow takes it
    RETURN NULL;
END $$;
CREATE TRIGGER usage_hourly_in_turn BEFORE INSERT OR UPDATE OR DELETE ON usage_hourly
    FOR EACH STATEMENT EXECUTE FUNCTION usage_hourly_in_turn();
