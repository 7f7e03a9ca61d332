"""How :mod:`flwr_slfac.cut` works: trace, data flow, plan, build."""
