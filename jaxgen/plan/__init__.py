"""Plans of a run on a machine that is not here: memory, collectives, time. `jaxgen plan` prints them."""
