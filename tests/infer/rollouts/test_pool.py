"""The best answers of each prompt, over rounds and as tensors."""

from onefold.infer.rollouts.pool import Pool


def test_the_best_of_all_rounds_stay():
    pool = Pool()
    for row, reward, ids in [(3, 0.5, [1, 2]), (3, 0.7, [4]), (1, -1.0, [9]), (3, 0.7, [5, 5, 5]), (3, 0.1, [6])]:
        pool.add(row, reward, ids, 2)
    assert pool.best(3, 2) == [(0.7, [4]), (0.7, [5, 5, 5])]
    assert pool.best(1, 2) == [(-1.0, [9])] * 2
    again = Pool.of(pool.memory())
    assert again.best(3, 2) == pool.best(3, 2)
    again.add(3, 0.9, [4], 2)  # known
    assert again.best(3, 1) == [(0.7, [4])]
