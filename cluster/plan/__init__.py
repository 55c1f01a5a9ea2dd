"""The capacity planner: a discrete-event model of routers, the answer cache and engine replicas."""
