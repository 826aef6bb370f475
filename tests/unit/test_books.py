"""What the status keeps for those who measure: waits by phase, interruptions by class, the age of a checkpoint."""

from datetime import timedelta

from support.play import START, Play, policy


def test_the_way_to_training_is_timed_by_phase(play: Play) -> None:
    play.step(3)
    assert play.status.phase == "Pending"
    assert play.status.phase_time == START, "it waited for the operator as well"
    play.run_pods()
    play.step(4)
    assert (play.status.phase, play.status.waited) == ("Preparing", {"Pending": 7})
    play.end(play.head(), 0, {"outcome": "Train"})
    play.step(10)
    play.run_pods()
    play.step(20)
    play.train(step=1, attempt=1)
    play.step(1)
    assert (play.status.phase, play.status.waited) == ("Running", {"Pending": 7, "Preparing": 10, "Starting": 21})
    assert play.status.phase_time == play.now
    play.train(step=50, attempt=1)
    play.step(60)
    assert play.status.waited == {"Pending": 7, "Preparing": 10, "Starting": 21}


def test_a_second_start_adds_to_the_first(training: Play) -> None:
    before = dict(training.status.waited)
    training.spec = policy(suspend=True)
    training.step(1)
    for name in list(training.names):
        training.end(name, 30, {"class": "Drained"})
    training.settle()
    training.spec = policy()
    training.settle()
    training.run_pods()
    training.step(9)
    assert training.status.phase == "Preparing"
    assert training.status.waited == {**before, "Pending": before["Pending"] + 9}


def test_interruptions_are_counted_by_class_whether_they_count_or_not(training: Play) -> None:
    training.end("gpt-train-1-1", 137, disruption="EvictionByEvictionAPI")
    training.settle()
    training.run_pods()
    training.step(1)
    training.train(step=21, attempt=2, committed=20)
    training.step(1)
    training.end("gpt-train-1-2", 1)
    training.settle()
    assert training.status.restarts.by_class == {"Evicted": 1, "Crashed": 1}
    assert training.status.restarts.total == 1


def test_a_checkpoint_is_as_old_as_the_first_word_of_it(training: Play) -> None:
    assert training.status.checkpoint is not None
    first = training.status.checkpoint.latest_time
    assert first == training.now
    training.train(30, attempt=1, committed=10)
    training.step(60)
    assert training.status.checkpoint.latest_time == first
    training.train(40, attempt=1, committed=30)
    training.step(60)
    assert training.status.checkpoint.latest_time == first + timedelta(seconds=60)
