"""The durable record in PostgreSQL: migrations, named queries, rows."""
