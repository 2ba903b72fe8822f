#!/bin/sh
# Stands in for gpulet-executor: keeps its end of the control socket open and never reads it, so
# that the fuzz target can take that end over. Goes when its parent does.
exec 2>/dev/null
while kill -0 "$PPID"; do
  sleep 1 </dev/null
done
