"""What a run will need on a machine that is not here: memory, collectives, time. `jaxgen plan` prints it."""
