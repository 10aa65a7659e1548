"""Test only: a CPU platform, CPU FSDP2, a small rollout server and a recording trainer, through verl's plugin registries."""
