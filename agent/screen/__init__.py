"""The kiosk's page: served by the agent, to the browser on the same device and to nobody else."""
