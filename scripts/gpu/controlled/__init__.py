"""The controlled pair: models made on the spot, whose greedy answers and acceptance are known beforehand."""
