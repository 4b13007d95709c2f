"""From candidates to the winner: calibrate, judge accuracy, measure latency, select."""
