"""Learning: it does learn, the same way each time, even when it is killed or shared."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.unit.training.learning import STILL, recipe, samples
from training.errors import DataError, Diverged, RecipeError, RunError
from training.finetune import Lesson, check, finetune, learn
from training.losses import objective
from training.prepare import prepare
from training.run import Run
from training.state import State, start
from training.team import Team, processes
from training.validate import Verdict, validate

ROOT = Path(__file__).parents[3]
ALONE = Team(0, 1, torch.device("cpu"))


def taught(folder, plan, count=12, report=lambda _: None, weights=None, val=6):
    task = plan.bundle.task
    found = samples(task, count), samples(task, val, start=100)
    return finetune(plan, *found, Run.open(folder, plan), weights=weights, report=report)


def metrics(folder):
    return list(csv.DictReader((folder / "metrics.csv").open()))


def same(one, other):
    assert set(one) == set(other)
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("task", "more"),
    [
        ("classification", {"activation": "softmax", "label_smoothing": 0.1}),
        ("classification", {"activation": "sigmoid", "balance": "loss"}),
        ("grading", {"ordinal_loss": "coral", "balance": "sampler"}),
        ("grading", {"ordinal_loss": "cumulative"}),
        ("segmentation", {"activation": "sigmoid", "backbone": "mobilenet_v2"}),
        ("segmentation", {"activation": "softmax", "precision": "bfloat16"}),
    ],
)
def test_every_task_learns_and_tells_of_each_epoch(tmp_path, task, more):
    told = []
    plan = recipe(task, epochs=8, augment=STILL, **more)
    learnt = taught(tmp_path / "r", plan, report=told.append)
    rows = metrics(tmp_path / "r")
    assert [int(row["epoch"]) for row in rows] == list(range(1, 9))
    assert float(rows[-1]["train_loss"]) < float(rows[0]["train_loss"])
    assert [p.done for p in told if p.stage == "epoch"] == list(range(1, 9))
    assert [p.done for p in told if p.stage == "learn"][:3] == [1, 2, 3]
    assert {p.part for p in told if p.stage == "prepare"} == {"train", "val"}
    start(plan, None).load_state_dict(learnt)
    assert all(not t.is_floating_point() or t.dtype == torch.float32 for t in learnt.values())
    same(learnt, Run(tmp_path / "r").weights())


@pytest.mark.slow
@pytest.mark.parametrize("network", ["fasterrcnn", "retinanet"])
def test_detection_learns_and_is_judged_by_its_precision(tmp_path, network):
    plan = recipe(
        "detection",
        network=network,
        backbone="mobilenet_v2",
        epochs=3,
        augment=STILL,
        encoder_rate=1e-4,
        head_rate=2e-4,
    )
    taught(tmp_path / "r", plan, count=4, val=2)
    rows = metrics(tmp_path / "r")
    assert float(rows[-1]["train_loss"]) < float(rows[0]["train_loss"])
    assert all(0 <= float(row["map"]) <= 1 for row in rows)


def test_what_it_learnt_it_knows(tmp_path):
    plan = recipe(epochs=12, augment=STILL, head_rate=1e-3, encoder_rate=1e-3)
    taught(tmp_path / "r", plan)
    assert max(float(row["auc"]) for row in metrics(tmp_path / "r")) > 0.9


def test_the_same_recipe_gives_the_same_weights_and_another_seed_others(tmp_path):
    plan = recipe(backbone="mobilenet_v2", epochs=1)
    one, two = (taught(tmp_path / name, plan) for name in "ab")
    same(one, two)
    other = taught(tmp_path / "c", recipe(backbone="mobilenet_v2", epochs=1, seed=1))
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_learning_starts_from_the_pretrained_encoder(tmp_path):
    from torchvision.models import get_model

    torch.manual_seed(5)
    state = get_model("squeezenet1_1", weights=None).state_dict()
    plan = recipe(epochs=1, encoder_rate=1e-12, weight_decay=0.0)
    learnt = taught(tmp_path / "r", plan, weights=state)
    expected = start(plan, state).state_dict()
    for name, tensor in expected.items():
        if name.startswith("encoder"):
            torch.testing.assert_close(learnt[name], tensor, atol=1e-6, rtol=0)


def test_a_frozen_encoder_does_not_move_nor_its_statistics(tmp_path):
    plan = recipe(backbone="mobilenet_v2", strategy="frozen", epochs=2)
    before, after = start(plan, None).state_dict(), taught(tmp_path / "r", plan)
    for name, tensor in before.items():
        assert torch.equal(after[name], tensor) == name.startswith("encoder"), name


def test_kept_statistics_stay_while_the_weights_beside_them_learn(tmp_path):
    plan = recipe(backbone="mobilenet_v2", batch_norm="keep", epochs=1)
    before, after = start(plan, None).state_dict(), taught(tmp_path / "r", plan)
    encoder = [name for name in before if name.startswith("encoder")]
    assert all(torch.equal(after[n], before[n]) for n in encoder if "running" in n)
    assert not any(torch.equal(after[n], before[n]) for n in encoder if n.endswith(".weight"))


def test_gradual_unfreezing_moves_the_deepest_stages_only():
    plan = recipe(backbone="mobilenet_v2", strategy="gradual", unfreeze_every=1, epochs=9)
    state = State.of(plan, None, ALONE.device)
    before = {name: tensor.clone() for name, tensor in state.network.state_dict().items()}
    ready = prepare(samples("classification", 8), plan.bundle)
    lesson = Lesson(plan, ready, None, ALONE, lambda _: None)
    for _ in range(3):
        lesson.epoch(state)
    after = state.network.state_dict()
    count = len(list(state.network.encoder.stages))
    for i in range(count):
        names = [n for n in before if n.startswith(f"encoder.stages.{i}.")]
        moved = any(not torch.equal(before[n], after[n]) for n in names)
        assert moved == (i >= count - 2), i
    assert [row["stages"] for row in state.history] == [0, 1, 2]


def test_the_best_epoch_is_kept_and_patience_ends_the_run():
    plan = recipe(epochs=50, patience=2)
    state = State.of(plan, None, torch.device("cpu"))
    weight = next(state.mean.module.parameters())
    for epoch, loss in enumerate([0.9, 0.5, 0.6, 0.7]):
        assert not state.over(50, 2)
        nn.init.constant_(weight, epoch)
        state.judged(Verdict(loss, 0.5))
    assert state.over(50, 2)
    assert not state.over(50, 0)
    first = next(iter(state.best.values()))
    assert bool((first == 1).all())


def test_a_run_that_stops_early_says_so_in_its_metrics(tmp_path):
    plan = recipe(epochs=60, patience=2, head_rate=0.02, encoder_rate=0.02)
    found = samples("classification", 8), samples("classification", 4, start=100)
    learnt = finetune(plan, *found, Run.open(tmp_path / "r", plan), weights=None)
    rows = metrics(tmp_path / "r")
    losses = [float(row["val_loss"]) for row in rows]
    assert len(rows) < 60
    assert losses.index(min(losses)) == len(rows) - 3
    network = start(plan, None)
    network.load_state_dict(learnt)
    ready = [prepare(some, plan.bundle) for some in found]
    judge = objective(plan, ready[0], judging=True)
    verdict = validate(network, ready[1], judge, plan.bundle, "cpu", 4)
    assert verdict.loss == pytest.approx(min(losses), rel=1e-3)


def test_without_validation_samples_the_last_epoch_is_taken(tmp_path):
    plan = recipe(epochs=2)
    learnt = taught(tmp_path / "r", plan, val=0)
    assert set(metrics(tmp_path / "r")[0]).isdisjoint({"val_loss", "auc"})
    state = State.of(plan, None, ALONE.device)
    ready = prepare(samples("classification", 12), plan.bundle)
    lesson = Lesson(plan, ready, None, ALONE, lambda _: None)
    for _ in range(2):
        lesson.epoch(state)
    same(learnt, state.mean.module.state_dict())


def test_a_loss_that_is_no_number_names_epoch_step_rate_and_what_to_do(tmp_path):
    plan = recipe(epochs=30, head_rate=1e25, encoder_rate=1e25, precision="bfloat16")
    with pytest.raises(
        Diverged,
        match=r"(?s)^the loss is (nan|inf) in epoch 1, step \d of 3.*e\+.*lower.*head_rate.*float",
    ):
        taught(tmp_path / "r", plan)
    assert not Run(tmp_path / "r").finished


def test_a_class_that_training_never_shows_is_refused(tmp_path):
    plan = recipe()
    with pytest.raises(DataError, match="shows Kind 1"):
        finetune(
            plan, samples("classification", 1), [], Run.open(tmp_path / "r", plan), weights=None
        )


def test_a_finished_run_says_so_and_does_not_learn_again(tmp_path):
    plan, told = recipe(), []
    first = taught(tmp_path / "r", plan)
    written = (tmp_path / "r" / "weights.safetensors").stat().st_mtime_ns
    second = taught(tmp_path / "r", plan, report=told.append)
    same(first, second)
    assert {p.stage for p in told} == {"prepare", "finished"}
    assert (tmp_path / "r" / "weights.safetensors").stat().st_mtime_ns == written


def test_a_checkpoint_restores_all_that_the_next_epoch_depends_on():
    plan = recipe(backbone="mobilenet_v2", epochs=3, dropout=0.5)
    ready = [prepare(samples("classification", n, start=n), plan.bundle) for n in (8, 4)]
    lesson = Lesson(plan, *ready, ALONE, lambda _: None)
    one = State.of(plan, None, ALONE.device)
    lesson.epoch(one)
    two = State.of(plan, None, ALONE.device)
    two.restore(one.checkpoint())
    for state in (one, two):
        lesson.epoch(state)
    same(one.checkpoint().tensors, two.checkpoint().tensors)
    assert one.score == two.score


def test_epochs_show_whole_batches_of_every_sample_in_another_order():
    plan = recipe(batch=4)
    lesson = Lesson(plan, prepare(samples("classification", 10), plan.bundle), None, ALONE, print)
    first, second = lesson.order(0), lesson.order(1)
    assert len(first) == len(set(first)) == 8
    assert first != second
    assert first == lesson.order(0)
    few = Lesson(plan, prepare(samples("classification", 3), plan.bundle), None, ALONE, print)
    assert sorted(few.order(0)) == [0, 1, 2]


def test_shares_of_a_batch_together_are_the_batch():
    plan = recipe(batch=4)
    ready = prepare(samples("classification", 8), plan.bundle)
    whole = next(Lesson(plan, ready, None, ALONE, print).batches(3))[0]
    halves = [
        next(Lesson(plan, ready, None, Team(rank, 2, ALONE.device), print).batches(3))[0]
        for rank in (0, 1)
    ]
    assert torch.equal(whole[0::2], halves[0])
    assert torch.equal(whole[1::2], halves[1])


def test_a_batch_that_processes_cannot_share_is_refused():
    plan = recipe(batch=5)
    ready = prepare(samples("classification", 8), plan.bundle)
    with pytest.raises(RecipeError, match=r"training\.batch: 5 .* multiple of 2"):
        check(plan, ready, Team(0, 2, ALONE.device))


def test_channels_last_is_a_matter_of_speed_alone(tmp_path):
    runs = [
        taught(tmp_path / str(flag), recipe(epochs=1, channels_last=flag)) for flag in (True, False)
    ]
    for name, tensor in runs[0].items():
        torch.testing.assert_close(tensor, runs[1][name], atol=2e-3, rtol=1e-2)


def test_prepared_samples_are_learnt_from_as_samples_are(tmp_path):
    plan = recipe()
    ready = [
        prepare(samples("classification", n, start=s), plan.bundle) for n, s in ((12, 0), (6, 100))
    ]
    one = learn(plan, *ready, Run.open(tmp_path / "a", plan), weights=None)
    same(one, taught(tmp_path / "b", plan))


def test_learning_on_other_data_in_the_same_folder_is_refused(tmp_path):
    plan = recipe()
    taught(tmp_path / "r", plan)
    with pytest.raises(RunError, match="train lacks s11"):
        taught(tmp_path / "r", plan, count=11)


def test_a_recipe_that_does_not_suit_hub_weights_is_refused_before_anything_is_learnt(tmp_path):
    plan = recipe(weights="hub", preprocessing={"mean": [0.0] * 3, "std": [1.0] * 3})
    with pytest.raises(RecipeError, match="hub weights expect"):
        taught(tmp_path / "r", plan)


def test_the_process_keeps_the_kernels_it_had(tmp_path):
    before = torch.are_deterministic_algorithms_enabled()
    taught(tmp_path / "r", recipe(epochs=1))
    assert torch.are_deterministic_algorithms_enabled() == before


def test_alone_there_is_one_process():
    with processes("cpu") as team:
        assert team == ALONE


# --- in processes of their own -----------------------------------------------------------------

SCRIPT = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from tests.unit.training.learning import recipe, samples
from training.finetune import finetune
from training.team import processes
from training.losses import objective
from training.run import Run
out, backbone, epochs, norm = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4]
dropout = 0.5 if norm == "adapt" else 0.0
plan = recipe(
    backbone=backbone, epochs=epochs, batch_norm=norm, patience=epochs, dropout=dropout
)
learnt = finetune(
    plan, samples("classification", 12), samples("classification", 4, start=100),
    Run.open(out, plan), weights=None,
)
from safetensors.torch import save_file
import os
save_file(learnt, out / f"returned-{os.environ.get('RANK', '0')}.safetensors")
"""


def command(folder, *more, launcher=()):
    arguments = [*launcher, str(folder.parent / "learn.py"), str(folder), *more]
    (folder.parent / "learn.py").write_text(SCRIPT)
    return [sys.executable, *arguments]


def environment():
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


@pytest.mark.slow
def test_a_run_that_is_killed_and_started_again_ends_with_the_same_bits(tmp_path):
    plain, killed = tmp_path / "plain", tmp_path / "killed"
    how = ("mobilenet_v2", "6", "adapt")
    subprocess.run(command(plain, *how), env=environment(), check=True)
    deaths = 0
    for line in (2, 4):  # killed after the first and the third epoch
        process = subprocess.Popen(command(killed, *how), env=environment())
        file = killed / "metrics.csv"
        until = time.monotonic() + 120
        while time.monotonic() < until and process.poll() is None:
            if file.is_file() and len(file.read_text().splitlines()) >= line:
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.002)
        deaths += process.wait() == -signal.SIGKILL
    assert deaths == 2
    assert not (killed / "weights.safetensors").exists()
    assert (killed / "checkpoint" / "last.safetensors").exists()
    subprocess.run(command(killed, *how), env=environment(), check=True)
    expected, found = ((folder / "weights.safetensors").read_bytes() for folder in (plain, killed))
    assert expected == found
    timeless = [
        [{k: v for k, v in row.items() if k != "seconds"} for row in metrics(folder)]
        for folder in (plain, killed)
    ]
    assert timeless[0] == timeless[1]


@pytest.mark.slow
def test_two_processes_end_with_one_set_of_weights_and_about_those_of_one_process(tmp_path):
    from safetensors.torch import load_file

    alone, shared = tmp_path / "alone", tmp_path / "shared"
    how = ("squeezenet1_1", "2", "keep")
    subprocess.run(command(alone, *how), env=environment(), check=True)
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    subprocess.run(command(shared, *how, launcher=launcher), env=environment(), check=True)
    first, second = (load_file(shared / f"returned-{rank}.safetensors") for rank in (0, 1))
    same(first, second)
    same(first, load_file(shared / "weights.safetensors"))
    one = load_file(alone / "weights.safetensors")
    for name, tensor in first.items():
        torch.testing.assert_close(tensor, one[name], atol=2e-3, rtol=1e-2)
    assert len(metrics(shared)) == 2
