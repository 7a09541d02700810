"""How fast it is, as ratios: our way and another way of doing the same work, run in turn on the same machine.

    python -m benchmarks --data pairs.zip

Method. What is compared does the same work on the same data with the same threads. Each contender runs once unmeasured,
then all of them run in turn, A B A B, several times, so that a slow moment of the machine hits all alike; clocks are
read when the device has finished. A ratio is our time divided by theirs in the same turn; the median and the range of
these ratios are given. Peak memory is measured in a process of its own.
"""
