"""PID 1 of a pod: starts Ray and the stage's program, answers HTTP while they are busy, turns SIGTERM into a drain."""
