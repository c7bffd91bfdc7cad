"""The embedded services: a private PostgreSQL with TimescaleDB, and a private Mosquitto."""
