//! The planner: pure functions of devices, profiles, demands and settings.
