"""First enrolment: one-time claims, and what a device gets for one."""
