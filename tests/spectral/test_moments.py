import io

import numpy as np
import pytest
import torch
from torch import Tensor

from unidd_pl.spectral import Moments, RunningMode, RunningMoments

EXACT = {"rtol": 1e-12, "atol": 1e-12}
SHAPES = [(6, 4, 3, 5), (8, 5, 1, 1), (2, 7, 2, 1), (9, 3)]  # h ≠ w, one position, fewer rows than channels
RAGGED = [3, 1, 6, 2]  # images of a chunk: merging has to weigh by count


def draw_features(seed: int, *shape: int) -> Tensor:
    rng = np.random.default_rng(seed)
    # Channels of different offset and scale, so that a forgotten centring or transpose shows.
    offset, scale = rng.normal(size=(2, shape[1], *[1] * (len(shape) - 2)))
    return torch.from_numpy(rng.normal(size=shape) * scale + 3 * offset)


def draw_labels(seed: int, n: int, k: int, signal: str) -> Tensor | None:
    rng = np.random.default_rng(seed + 1000)
    if signal == "mean":
        return None
    if signal == "class":
        return torch.from_numpy(np.eye(k)[rng.integers(k, size=n)])
    logits = rng.normal(size=(n, k))
    return torch.from_numpy(np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True))


def rows_of(features: Tensor) -> np.ndarray:
    """X (s, c): one row a position."""
    return np.moveaxis(features.detach().numpy(), 1, -1).reshape(-1, features.shape[1])


def pool(features: Tensor) -> np.ndarray:
    array = features.detach().numpy()
    return array.mean(axis=(2, 3)) if array.ndim == 4 else array


def covariance(rows: np.ndarray) -> np.ndarray:
    centred = rows - rows.mean(axis=0)
    return centred.T @ centred / len(rows)


def flc_oracle(features: Tensor, labels: Tensor | None) -> np.ndarray:
    """Φ of SPEC.md section 1, a column at a time."""
    pooled = pool(features)
    if labels is None:
        return rows_of(features).mean(axis=0)[:, None]
    weights = labels.numpy()
    k = weights.shape[1]
    columns = np.zeros((pooled.shape[1], k))
    for j in range(k):
        if weights[:, j].sum() > 0:
            weighted = sum(w * x for w, x in zip(weights[:, j], pooled, strict=True))
            columns[:, j] = weighted / weights[:, j].sum() / k
    return columns


def assert_moments_close(actual: Moments, expected: Moments, **tolerance: float) -> None:
    for name, value in expected.tensors().items():
        torch.testing.assert_close(actual.tensors()[name], value, **(tolerance or EXACT), msg=name)


def split(features: Tensor, labels: Tensor | None, sizes: list[int]) -> list[Moments]:
    labels_of = [None] * len(sizes) if labels is None else labels.split(sizes)
    return [Moments.of(x, y) for x, y in zip(features.split(sizes), labels_of, strict=True)]


class TestOf:
    @pytest.mark.parametrize("shape", SHAPES)
    @pytest.mark.parametrize("seed", range(3))
    def test_mean_and_ffc_are_those_of_all_rows(self, seed: int, shape: tuple[int, ...]) -> None:
        features = draw_features(seed, *shape)
        moments = Moments.of(features)
        rows = rows_of(features)
        assert moments.count.item() == len(rows) == features.numel() // shape[1]
        np.testing.assert_allclose(moments.mean, rows.mean(axis=0), **EXACT)
        np.testing.assert_allclose(moments.ffc, np.cov(rows, rowvar=False, bias=True), **EXACT)

    def test_memory_format_does_not_matter(self) -> None:
        features = draw_features(0, 6, 4, 3, 5)
        expected = Moments.of(features)
        assert_moments_close(Moments.of(features.to(memory_format=torch.channels_last)), expected)

    def test_large_offset_does_not_cancel_in_float32(self) -> None:
        features = draw_features(0, 6, 4, 3, 5)
        shifted = (features + 1000).float()
        expected = covariance(rows_of(shifted.double()))
        np.testing.assert_allclose(Moments.of(shifted).ffc, expected, rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize("signal", ["mean", "class", "soft"])
    @pytest.mark.parametrize("shape", SHAPES)
    @pytest.mark.parametrize("seed", range(2))
    def test_flc_of_each_signal(self, seed: int, shape: tuple[int, ...], signal: str) -> None:
        features, labels = draw_features(seed, *shape), draw_labels(seed, shape[0], 4, signal)
        np.testing.assert_allclose(Moments.of(features, labels).flc, flc_oracle(features, labels), **EXACT)

    def test_balanced_class_columns_are_the_sum_over_images(self) -> None:
        n, k = 12, 4
        features = draw_features(0, n, 5, 3, 2)
        classes = np.random.default_rng(0).permutation(np.arange(n) % k)
        one_hot = np.eye(k)[classes]
        expected = sum(np.outer(x, y) for x, y in zip(pool(features), one_hot, strict=True)) / n
        np.testing.assert_allclose(Moments.of(features, torch.from_numpy(one_hot)).flc, expected, **EXACT)

    def test_unbalanced_class_column_is_its_own_mean_over_k(self) -> None:
        features = draw_features(0, 5, 4, 3, 2)
        labels = torch.eye(3, dtype=torch.float64)[[0, 0, 0, 0, 2]]
        flc = Moments.of(features, labels).flc
        pooled = pool(features)
        np.testing.assert_allclose(flc[:, 0], pooled[:4].mean(axis=0) / 3, **EXACT)
        np.testing.assert_allclose(flc[:, 1], 0)
        np.testing.assert_allclose(flc[:, 2], pooled[4] / 3, **EXACT)

    def test_integer_labels_are_accepted(self) -> None:
        features = draw_features(0, 5, 4, 3, 2)
        one_hot = torch.eye(3, dtype=torch.long)[[0, 1, 2, 0, 1]]
        assert_moments_close(Moments.of(features, one_hot), Moments.of(features, one_hot.double()))

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision_is_widened(self, dtype: torch.dtype) -> None:
        half, labels = draw_features(0, 6, 4, 3, 5).to(dtype), draw_labels(0, 6, 3, "class")
        assert labels is not None
        moments = Moments.of(half, labels.to(dtype))
        assert {field.dtype for field in moments.tensors().values()} == {torch.float32}
        assert_moments_close(moments, Moments.of(half.float(), labels.float()), rtol=0, atol=0)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_precision_of_the_features_is_kept(self, dtype: torch.dtype) -> None:
        moments = Moments.of(draw_features(0, 6, 4, 3, 5).to(dtype), draw_labels(0, 6, 3, "soft"))
        assert {field.dtype for field in (*moments.tensors().values(), moments.flc)} == {dtype}

    def test_autocast_changes_nothing(self) -> None:
        features = draw_features(0, 6, 4, 3, 5).float().requires_grad_()
        labels = draw_labels(0, 6, 3, "soft")
        expected = Moments.of(features, labels)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert (features[0, :, 0] @ features[0, :, 0].T).dtype == torch.bfloat16  # autocast is on
            moments = Moments.of(features, labels)
        assert_moments_close(moments, expected, rtol=0, atol=0)
        gradients = [torch.autograd.grad(m.ffc.square().sum(), features)[0] for m in (moments, expected)]
        torch.testing.assert_close(*gradients, rtol=0, atol=0)

    def test_gradient_flows_to_features_and_labels(self) -> None:
        features = draw_features(0, 4, 3, 2, 2).requires_grad_()
        labels = draw_labels(0, 4, 3, "soft")
        assert labels is not None

        def outputs(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
            moments = Moments.of(x, y)
            return moments.mean, moments.ffc, moments.flc

        assert torch.autograd.gradcheck(outputs, (features, labels.requires_grad_()))

    def test_absent_class_has_finite_gradient(self) -> None:
        features = draw_features(0, 4, 3, 2, 2).requires_grad_()
        labels = torch.eye(3, dtype=torch.float64)[[0, 0, 2, 2]].requires_grad_()
        Moments.of(features, labels).flc.square().sum().backward()
        assert features.grad is not None
        assert features.grad.isfinite().all()
        assert labels.grad is not None
        assert labels.grad.isfinite().all()


class TestMerge:
    @pytest.mark.parametrize("signal", ["mean", "class", "soft"])
    @pytest.mark.parametrize("shape", [(12, 4, 3, 5), (12, 20, 1, 1), (12, 3)])
    @pytest.mark.parametrize("seed", range(2))
    def test_parts_merge_to_the_whole(self, seed: int, shape: tuple[int, ...], signal: str) -> None:
        features, labels = draw_features(seed, *shape), draw_labels(seed, shape[0], 5, signal)
        parts = split(features, labels, RAGGED)
        whole = parts[0].merge(parts[1]).merge(parts[2]).merge(parts[3])
        assert_moments_close(whole, Moments.of(features, labels))
        np.testing.assert_allclose(whole.ffc, covariance(rows_of(features)), **EXACT)
        np.testing.assert_allclose(whole.flc, flc_oracle(features, labels), **EXACT)

    @pytest.mark.parametrize("scatter_between", [True, False])
    @pytest.mark.parametrize("signal", ["mean", "class", "soft"])
    def test_order_and_grouping_do_not_matter(self, signal: str, scatter_between: bool) -> None:
        features, labels = draw_features(3, 12, 4, 3, 5), draw_labels(3, 12, 5, signal)
        a, b, c, d = split(features, labels, RAGGED)

        def merge(first: Moments, second: Moments) -> Moments:
            return first.merge(second, scatter_between=scatter_between)

        expected = merge(merge(merge(a, b), c), d)
        assert_moments_close(merge(merge(a, b), merge(c, d)), expected)
        assert_moments_close(merge(a, merge(b, merge(c, d))), expected)
        assert_moments_close(merge(d, merge(b, merge(a, c))), expected)

    @pytest.mark.parametrize("signal", ["mean", "class", "soft"])
    def test_order_of_the_images_does_not_matter(self, signal: str) -> None:
        features, labels = draw_features(4, 12, 4, 3, 5), draw_labels(4, 12, 5, signal)
        order = torch.from_numpy(np.random.default_rng(4).permutation(12))
        permuted = Moments.of(features[order], None if labels is None else labels[order])
        assert_moments_close(permuted, Moments.of(features, labels))

    def test_images_of_different_size_merge_by_rows(self) -> None:
        small, large = draw_features(0, 3, 4, 2, 2), draw_features(1, 2, 4, 5, 5)
        merged = Moments.of(small).merge(Moments.of(large))
        rows = np.concatenate([rows_of(small), rows_of(large)])
        np.testing.assert_allclose(merged.mean, rows.mean(axis=0), **EXACT)
        np.testing.assert_allclose(merged.ffc, covariance(rows), **EXACT)

    def test_classes_absent_from_one_side(self) -> None:
        features = draw_features(0, 6, 4, 3, 2)
        labels = torch.eye(5, dtype=torch.float64)[[0, 0, 1, 1, 1, 3]]  # 0 left, 1 both, 3 right, 2 and 4 none
        left, right = split(features, labels, [3, 3])
        for merged in (left.merge(right), right.merge(left)):
            np.testing.assert_allclose(merged.label_weight, [2, 3, 0, 1, 0])
            np.testing.assert_allclose(merged.flc, flc_oracle(features, labels), **EXACT)
            np.testing.assert_allclose(merged.flc[:, [2, 4]], 0)

    def test_without_scatter_between_is_the_weighted_mean(self) -> None:
        features, labels = draw_features(0, 7, 4, 3, 2), draw_labels(0, 7, 3, "class")
        left, right = split(features, labels, [2, 5])
        merged = left.merge(right, scatter_between=False)
        first, second = rows_of(features[:2]), rows_of(features[2:])
        np.testing.assert_allclose(merged.ffc, 2 / 7 * covariance(first) + 5 / 7 * covariance(second), **EXACT)
        exact = left.merge(right)
        assert not torch.allclose(merged.ffc, exact.ffc)
        for name in ("count", "mean", "label_weight", "label_mean"):
            torch.testing.assert_close(merged.tensors()[name], exact.tensors()[name])

    def test_wider_side_decides_the_precision(self) -> None:
        narrow, wide = (
            Moments.of(draw_features(0, 3, 4, 2, 2).float()),
            Moments.of(draw_features(1, 3, 4, 2, 2)),
        )
        for merged in (narrow.merge(wide), wide.merge(narrow)):
            assert {field.dtype for field in merged.tensors().values()} == {torch.float64}

    def test_gradient_flows_to_both(self) -> None:
        left = draw_features(0, 3, 3, 2, 2).requires_grad_()
        right = draw_features(1, 2, 3, 2, 2).requires_grad_()
        weight = torch.from_numpy(np.random.default_rng(0).normal(size=(3, 3)))
        merged = Moments.of(left).merge(Moments.of(right)).ffc
        whole = torch.cov(torch.cat([left, right]).transpose(0, 1).flatten(1), correction=0)
        for actual, expected in zip(
            torch.autograd.grad((weight * merged).sum(), (left, right)),
            torch.autograd.grad((weight * whole).sum(), (left, right)),
            strict=True,
        ):
            torch.testing.assert_close(actual, expected, **EXACT)

    def test_to_and_detach(self) -> None:
        features = draw_features(0, 3, 4, 2, 2).requires_grad_()
        moments = Moments.of(features, draw_labels(0, 3, 2, "class"))
        narrow = moments.to(dtype=torch.float32)
        assert {field.dtype for field in narrow.tensors().values()} == {torch.float32}
        assert narrow.ffc.requires_grad
        assert not any(field.requires_grad for field in moments.detach().tensors().values())
        assert_moments_close(moments.detach(), moments, rtol=0, atol=0)


class TestRunningMoments:
    @pytest.mark.parametrize("signal", ["mean", "class", "soft"])
    def test_mean_is_the_formula_of_the_release(self, signal: str) -> None:
        """(1−1/b) Ψ̄ + (1/b) Ψ(batch), chunks of different size counting once each."""
        running = RunningMoments("mean")
        ffc, flc, mean = np.zeros((4, 4)), np.zeros((4, 1 if signal == "mean" else 3)), np.zeros(4)
        for b, n in enumerate([4, 3, 8, 5], start=1):
            features, labels = draw_features(b, n, 4, 3, 2), draw_labels(b, n, 3, signal)
            if signal == "class":  # every chunk holds every class, as on CIFAR
                labels = torch.eye(3, dtype=torch.float64)[np.arange(n) % 3]
            ffc = (1 - 1 / b) * ffc + (1 / b) * covariance(rows_of(features))
            flc = (1 - 1 / b) * flc + (1 / b) * flc_oracle(features, labels)
            mean = (1 - 1 / b) * mean + (1 / b) * rows_of(features).mean(axis=0)
            batch = [Moments.of(features, labels)]
            (used,) = running.combine(batch)
            np.testing.assert_allclose(used.ffc, ffc, **EXACT)
            np.testing.assert_allclose(used.flc, flc, **EXACT)
            np.testing.assert_allclose(used.mean, mean, **EXACT)
            running.update(batch)

    @pytest.mark.parametrize("signal", ["mean", "class", "soft"])
    def test_merge_is_the_moments_of_all_rows(self, signal: str) -> None:
        running = RunningMoments("merge")
        chunks = [(draw_features(b, n, 4, 3, 2), draw_labels(b, n, 3, signal)) for b, n in enumerate(RAGGED)]
        for done in range(1, len(chunks) + 1):
            features = torch.cat([x for x, _ in chunks[:done]])
            labels = None if signal == "mean" else torch.cat([y for _, y in chunks[:done] if y is not None])
            batch = [Moments.of(*chunks[done - 1])]
            (used,) = running.combine(batch)
            assert used.count.item() == len(rows_of(features))
            np.testing.assert_allclose(used.mean, rows_of(features).mean(axis=0), **EXACT)
            np.testing.assert_allclose(used.ffc, covariance(rows_of(features)), **EXACT)
            np.testing.assert_allclose(used.flc, flc_oracle(features, labels), **EXACT)
            running.update(batch)

    @pytest.mark.parametrize("mode", ["mean", "merge"])
    def test_chunks_that_hold_different_classes(self, mode: RunningMode) -> None:
        """A class column is the mean over the chunks that hold the class; the others leave it as it is."""
        running, k = RunningMoments(mode), 4
        chunks = [[0, 1], [2, 3], [0, 1], [2, 3], [0, 2]]  # class-sorted, then a mixed one
        seen: dict[int, list[np.ndarray]] = {}
        for b, classes in enumerate(chunks):
            features = draw_features(b, 2, 3, 2, 2)
            batch = [Moments.of(features, torch.eye(k, dtype=torch.float64)[classes])]
            for class_index, pooled in zip(classes, pool(features), strict=True):
                seen.setdefault(class_index, []).append(pooled)
            (used,) = running.combine(batch)
            for class_index in range(k):
                expected = np.mean(seen[class_index], axis=0) / k if class_index in seen else np.zeros(3)
                np.testing.assert_allclose(used.flc[:, class_index], expected, **EXACT)
            running.update(batch)

    @pytest.mark.parametrize("mode", ["mean", "merge"])
    def test_combine_leaves_the_state_alone(self, mode: RunningMode) -> None:
        running = RunningMoments(mode)
        first, second = ([Moments.of(draw_features(seed, 3, 4, 2, 2))] for seed in (0, 1))
        running.update(first)
        (before,) = running.combine(second)
        running.combine(first)
        assert_moments_close(running.combine(second)[0], before, rtol=0, atol=0)

    def test_layers_are_kept_apart(self) -> None:
        running = RunningMoments("merge")
        for seed in (0, 10):
            running.update([Moments.of(draw_features(seed, 3, 4, 2, 2)), Moments.of(draw_features(seed + 1, 3, 6))])
        narrow, wide = running.combine([Moments.of(draw_features(20, 3, 4, 2, 2)), Moments.of(draw_features(21, 3, 6))])
        for used, offset, shape in ((narrow, 0, (3, 4, 2, 2)), (wide, 1, (3, 6))):
            rows = np.concatenate([rows_of(draw_features(seed + offset, *shape)) for seed in (0, 10, 20)])
            np.testing.assert_allclose(used.ffc, covariance(rows), **EXACT)

    @pytest.mark.parametrize("b", [1, 2, 5])
    def test_gradient_of_mean_is_that_of_the_batch_over_b(self, b: int) -> None:
        running = RunningMoments("mean")
        finished = [draw_features(seed, 3, 4, 2, 2).requires_grad_() for seed in range(b - 1)]
        for features in finished:
            running.update([Moments.of(features)])
        current = draw_features(100, 5, 4, 2, 2).requires_grad_()
        (used,) = running.combine([Moments.of(current)])
        rows = current.transpose(0, 1).flatten(1)
        weight = torch.from_numpy(np.random.default_rng(0).normal(size=(4, 4)))
        expected = [
            torch.autograd.grad((weight * torch.cov(rows, correction=0)).sum(), current, retain_graph=True),
            torch.autograd.grad((weight[:, :1] * rows.mean(dim=1)[:, None]).sum(), current),
        ]
        torch.autograd.backward((weight * used.ffc).sum(), retain_graph=True)
        torch.testing.assert_close(current.grad, expected[0][0] / b, **EXACT)
        current.grad = None
        (weight[:, :1] * used.flc).sum().backward()
        torch.testing.assert_close(current.grad, expected[1][0] / b, **EXACT)
        assert all(features.grad is None for features in finished)

    def test_gradient_of_merge_is_that_of_all_rows_in_the_batch(self) -> None:
        running = RunningMoments("merge")
        finished = [draw_features(seed, 3, 4, 2, 2).requires_grad_() for seed in range(2)]
        for features in finished:
            running.update([Moments.of(features)])
        current = draw_features(100, 5, 4, 2, 2).requires_grad_()
        (used,) = running.combine([Moments.of(current)])
        rows = torch.cat([*(x.detach() for x in finished), current]).transpose(0, 1).flatten(1)
        weight = torch.from_numpy(np.random.default_rng(0).normal(size=(4, 4)))
        (expected,) = torch.autograd.grad((weight * torch.cov(rows, correction=0)).sum(), current)
        (weight * used.ffc).sum().backward()
        torch.testing.assert_close(current.grad, expected, **EXACT)
        assert all(features.grad is None for features in finished)

    @pytest.mark.parametrize("mode", ["mean", "merge"])
    def test_precision_of_the_batch_is_kept_and_the_state_is_wide(self, mode: RunningMode) -> None:
        running = RunningMoments(mode)
        batch = [Moments.of(draw_features(0, 3, 4, 2, 2).float(), draw_labels(0, 3, 2, "class"))]
        for _ in range(2):
            assert {t.dtype for t in running.combine(batch)[0].tensors().values()} == {torch.float32}
            running.update(batch)
        assert {t.dtype for t in running.state_dict()[0].values()} == {torch.float64}

    @pytest.mark.parametrize("mode", ["mean", "merge"])
    @pytest.mark.parametrize("updates", [0, 1, 3])
    def test_state_survives_a_checkpoint(self, updates: int, mode: RunningMode) -> None:
        def batch(seed: int) -> list[Moments]:
            return [Moments.of(draw_features(seed, 3, 4, 2, 2), draw_labels(seed, 3, 5, "class"))]

        running, restored = RunningMoments(mode), RunningMoments(mode)
        for seed in range(updates):
            running.update(batch(seed))
        file = io.BytesIO()
        torch.save(running.state_dict(), file)
        file.seek(0)
        restored.load_state_dict(torch.load(file, weights_only=True))
        for seed in (10, 11):  # they agree from here on, not only at once
            assert_moments_close(restored.combine(batch(seed))[0], running.combine(batch(seed))[0], rtol=0, atol=0)
            running.update(batch(seed))
            restored.update(batch(seed))

    def test_loading_an_empty_state_forgets(self) -> None:
        running = RunningMoments("merge")
        batch = [Moments.of(draw_features(0, 3, 4, 2, 2))]
        running.update([Moments.of(draw_features(1, 3, 4, 2, 2))])
        running.load_state_dict([])
        assert running.state_dict() == []
        assert_moments_close(running.combine(batch)[0], batch[0], rtol=0, atol=0)

    def test_another_number_of_layers_is_rejected(self) -> None:
        running = RunningMoments("merge")
        batch = [Moments.of(draw_features(0, 3, 4, 2, 2))]
        running.update(batch)
        with pytest.raises(ValueError, match="got moments of 2 layers, but the finished chunks have 1"):
            running.combine([*batch, *batch])
        with pytest.raises(ValueError, match="got moments of 2 layers, but the finished chunks have 1"):
            running.update([*batch, *batch])
