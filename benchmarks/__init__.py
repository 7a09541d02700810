"""Measure speed as ratios: our way and another way of doing the same work, run in turn on the same
machine.

    python -m benchmarks --data pairs.zip

Method. All contenders of a row do the same work on the same data with the same number of threads.
Each runs once to warm up. Then they run in turn, A B A B, several times, so that a slow moment of
the machine affects all of them; the device is synchronized before the clock is read. A ratio is our
time divided by theirs in the same turn. The table gives the median and the range of the ratios.
Peak memory is measured in a separate process."""
