import hashlib
import os
import pickle
import re
import shutil
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets

from irevnet.data import (
    Augmentation,
    FolderImages,
    TensorImages,
    TrainingPass,
    load_cifar10,
    load_data,
    load_digits,
    load_image_folders,
)
from irevnet.data.folders import read_image

PARTS = ("train", "validation", "test")


def fingerprint(images):
    content = images.images.numpy().tobytes() + images.labels.numpy().tobytes()
    return hashlib.sha256(content).hexdigest()[:16]


def rows(*sets):
    """Every image with its label, as bytes."""
    return [
        image.numpy().tobytes() + bytes([int(label)])
        for images in sets
        for image, label in zip(images.images, images.labels, strict=True)
    ]


class TestDigits:
    @pytest.mark.parametrize(
        ("validation", "sizes"), [(0, (1257, 0, 540)), (180, (1077, 180, 540))]
    )
    def test_sizes_and_types(self, validation, sizes):
        digits = load_digits(validation)
        assert digits.classes == tuple("0123456789")
        for part, size in zip(PARTS, sizes, strict=True):
            images = getattr(digits, part)
            assert len(images) == size
            assert images.images.shape == (size, 1, 8, 8)
            assert images.images.dtype == torch.uint8
            assert images.labels.shape == (size,)
            assert images.labels.dtype == torch.int64

    def test_the_split_is_fixed(self):
        plain, held_out = load_digits(), load_digits(180)
        assert fingerprint(plain.train) == "695a12093657c88c"
        assert fingerprint(plain.test) == fingerprint(held_out.test) == "1252c8c72559de62"
        assert fingerprint(held_out.train) == "1ea7f5eee280086c"
        assert fingerprint(held_out.validation) == "aba01dcd1eed9d71"

    def test_it_is_a_split_of_all_images(self):
        from sklearn.datasets import load_digits as source

        digits = load_digits(180)
        grey = np.rint(source().images * (255 / 16)).astype(np.uint8)[:, None]
        everything = TensorImages(torch.from_numpy(grey), torch.from_numpy(source().target))
        assert sorted(rows(digits.train, digits.validation, digits.test)) == sorted(
            rows(everything)
        )

    def test_no_image_is_in_two_parts(self):
        digits = load_digits(180)
        assert len(set(rows(digits.train, digits.validation, digits.test))) == 1797

    @pytest.mark.parametrize("part", PARTS)
    def test_every_class_has_its_share(self, part):
        images = getattr(load_digits(180), part)
        counts = torch.bincount(images.labels, minlength=10)
        whole = torch.tensor([178, 182, 177, 183, 181, 182, 181, 179, 174, 180])
        assert (counts - whole * len(images) / 1797).abs().max() < 1

    def test_17_grey_levels_from_0_to_255(self):
        images = load_digits().train
        assert images.images.unique().tolist() == [round(level * 255 / 16) for level in range(17)]
        x, _ = images.first(len(images))
        assert x.dtype == torch.float32
        assert (x.min(), x.max()) == (0, 1)

    @pytest.mark.parametrize("validation", [-1, 9, 1248, 5000, 0.1, "180", None, True])
    def test_impossible_validation_sizes(self, validation):
        message = (
            "validation must be 0 or an integer from 10 to 1247 (at least one image of each class "
            f"on either side), got {validation!r}"
        )
        with pytest.raises(ValueError, match=re.escape(message)):
            load_digits(validation)


class TestTensorImages:
    @pytest.fixture
    def images(self):
        # Every image is constant: its grey level is its index, its label the index plus 100.
        pixels = torch.arange(11, dtype=torch.uint8)[:, None, None, None].expand(11, 3, 4, 5)
        return TensorImages(pixels.contiguous(), torch.arange(100, 111))

    def test_batches_in_order(self, images):
        batches = list(images.batches(4))
        assert [len(x) for x, _ in batches] == [4, 4, 3]
        x, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
        assert x.dtype == torch.float32
        assert torch.equal(x, images.images.float() / 255)
        assert torch.equal(labels, images.labels)

    def test_first(self, images):
        x, labels = images.first(3)
        assert torch.equal(x, images.images[:3] / 255)
        assert labels.tolist() == [100, 101, 102]
        assert len(images.first(100)[0]) == len(images) == 11

    def test_a_subset_is_the_first_images_and_at_most_all(self, images):
        few = images.subset(3)
        assert torch.equal(few.images, images.images[:3])
        assert torch.equal(few.labels, images.labels[:3])
        assert len(images.subset(10_000)) == len(images)

    def test_some_classes(self, images):
        some = images.of_classes([109, 103])
        assert some.labels.tolist() == [103, 109]
        assert some.images[:, 0, 0, 0].tolist() == [3, 9]
        assert len(images.of_classes([])) == 0

    def test_training_batches_hold_every_image_at_most_once_and_its_own_label(self, images):
        batches = list(images.training_batches(4, Augmentation(), TrainingPass(0, 0)))
        assert [x.shape for x, _ in batches] == [(4, 3, 4, 5)] * 2
        x, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
        assert torch.equal((x[:, 0, 0, 0] * 255).round().long() + 100, labels)
        assert len(set(labels.tolist())) == 8
        assert labels.tolist() != sorted(labels.tolist())

    def test_a_batch_size_that_divides_leaves_nothing_out(self, images):
        ten = TensorImages(images.images[:10], images.labels[:10])
        batches = ten.training_batches(5, Augmentation(), TrainingPass(0, 0))
        assert sorted(label for _, labels in batches for label in labels.tolist()) == list(
            range(100, 110)
        )

    def test_training_batches_depend_on_the_pass_alone(self, images):
        def draw(seed):
            torch.randn(seed)  # the global generator must not matter
            augmentation = Augmentation(1, "random", cutout=2)
            return list(images.training_batches(4, augmentation, TrainingPass(seed, 3)))

        for (x, labels), (y, other) in zip(draw(1), draw(1), strict=True):
            assert torch.equal(x, y)
            assert torch.equal(labels, other)
        assert any(
            not torch.equal(labels, other)
            for (_, labels), (_, other) in zip(draw(1), draw(2), strict=True)
        )

    @pytest.mark.parametrize("flip", ["random", "alternating"])
    def test_a_pass_that_starts_later_has_the_same_batches(self, images, flip):
        augmentation = Augmentation(1, flip, cutout=2)
        whole = list(images.training_batches(3, augmentation, TrainingPass(5, 1)))
        late = list(images.training_batches(3, augmentation, TrainingPass(5, 1, start=2)))
        assert len(late) == len(whole) - 2 == 1
        for (x, labels), (y, other) in zip(whole[2:], late, strict=True):
            assert torch.equal(x, y)
            assert torch.equal(labels, other)

    def test_the_digest_tells_images_labels_and_their_order(self, images):
        digest = images.digest()
        assert digest == TensorImages(images.images.clone(), images.labels.clone()).digest()
        others = [
            TensorImages(images.images.flip(0), images.labels),
            TensorImages(images.images, images.labels.flip(0)),
            TensorImages(images.images.reshape(11, 3, 5, 4), images.labels),
        ]
        assert len({digest, *(other.digest() for other in others)}) == 4

    def test_to_moves_images_and_labels(self, images):
        moved = images.to("meta")
        assert moved.images.is_meta
        assert moved.labels.is_meta
        assert not images.images.is_meta
        digits = load_digits(10).to("meta")
        assert all(getattr(digits, part).images.is_meta for part in PARTS)
        assert len(digits.classes) == 10


def augment(augmentation, x):
    """The augmented images as uint8."""
    drawn = augmentation.draw(len(x), tuple(x.shape[2:]), torch.Generator())
    return (augmentation.apply(x, drawn) * 255).round().to(x.dtype)


class TestAugmentation:
    def test_cutout_sets_a_square_to_grey(self):
        x = torch.full((200, 3, 9, 9), 255, dtype=torch.uint8)
        grey = (augment(Augmentation(cutout=3), x) == 127).all(1)
        sizes = grey.flatten(1).sum(1)
        assert sizes.max() == 9
        assert sizes.min() >= 4  # a corner of the square at least
        rows, columns = grey.any(2).sum(1), grey.any(1).sum(1)
        assert torch.equal(rows * columns, sizes)

    def test_side_resizes(self):
        x = torch.full((2, 3, 8, 8), 51, dtype=torch.uint8)
        resized = Augmentation(side=4).apply(x, {})
        assert resized.shape == (2, 3, 4, 4)
        torch.testing.assert_close(resized, torch.full((2, 3, 4, 4), 0.2))

    def candidates(self, image, padding, flip):
        """Every possible augmentation of one image, computed pixel by pixel."""
        channels, height, width = image.shape
        for mirrored in (False, True) if flip else (False,):
            for top in range(-padding, padding + 1):
                for left in range(-padding, padding + 1):
                    result = torch.zeros_like(image)
                    for c in range(channels):
                        for row in range(height):
                            for column in range(width):
                                y = row + top
                                x = (width - 1 - column if mirrored else column) + left
                                if 0 <= y < height and 0 <= x < width:
                                    result[c, row, column] = image[c, y, x]
                    yield result

    @pytest.mark.parametrize(
        ("padding", "flip"), [(0, False), (0, True), (1, False), (1, True), (2, False)]
    )
    def test_against_plain_loops(self, padding, flip):
        image = torch.randint(1, 256, (2, 4, 5), dtype=torch.uint8)
        candidates = list(self.candidates(image, padding, flip))
        assert len(candidates) == (2 * padding + 1) ** 2 * (1 + flip)
        count = 40 * len(candidates)
        x = augment(
            Augmentation(padding, "random" if flip else "none"), image.expand(count, 2, 4, 5)
        )
        assert x.shape == (count, 2, 4, 5)
        times = [int((x == candidate).flatten(1).all(1).sum()) for candidate in candidates]
        assert sum(times) == count  # nothing else comes out
        # All of them about equally often: 40 expected, five standard deviations are 31.
        assert count == 40 or (min(times) > 8 and max(times) < 72)

    def test_every_image_is_changed_on_its_own(self):
        x = torch.randint(1, 256, (200, 1, 4, 4), dtype=torch.uint8)
        y = augment(Augmentation(1, "random"), x)
        for before, after in zip(x, y, strict=True):
            assert any(torch.equal(after, image) for image in self.candidates(before, 1, True))

    def test_no_augmentation_is_the_identity(self):
        x = torch.randint(1, 256, (3, 1, 4, 4), dtype=torch.uint8)
        assert torch.equal(augment(Augmentation(), x), x)


class TestCifar10:
    @pytest.fixture
    def no_network(self, monkeypatch):
        def fail(*arguments, **keywords):
            raise URLError("no network here")

        monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", fail)

    @pytest.fixture
    def source(self, tmp_path, monkeypatch):
        """Files in CIFAR-10's format, of twenty images each; torchvision gets their checksums."""
        folder = tmp_path / "cifar-10-batches-py"
        folder.mkdir()
        images = np.random.default_rng(0).integers(0, 256, (120, 3, 32, 32), np.uint8)
        labels = [index % 10 for index in range(120)]

        def write(name, content):
            (folder / name).write_bytes(pickle.dumps(content))
            return hashlib.md5((folder / name).read_bytes()).hexdigest()

        names = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]
        sums = []
        for index, name in enumerate(names):
            part = slice(20 * index, 20 * index + 20)
            content = {"data": images[part].reshape(20, 3072), "labels": labels[part]}
            sums.append([name, write(name, content)])
        meta = {"label_names": [f"class {number}" for number in range(10)]}
        monkeypatch.setattr(datasets.CIFAR10, "train_list", sums[:5])
        monkeypatch.setattr(datasets.CIFAR10, "test_list", sums[5:])
        monkeypatch.setattr(
            datasets.CIFAR10,
            "meta",
            {**datasets.CIFAR10.meta, "md5": write("batches.meta", meta)},
        )
        return tmp_path, torch.from_numpy(images), torch.tensor(labels)

    def test_images_labels_and_classes(self, source, no_network):
        root, images, labels = source
        cifar = load_cifar10(root)
        assert torch.equal(cifar.train.images, images[:100])
        assert torch.equal(cifar.train.labels, labels[:100])
        assert torch.equal(cifar.test.images, images[100:])
        assert torch.equal(cifar.test.labels, labels[100:])
        assert len(cifar.validation) == 0
        assert cifar.classes == tuple(f"class {number}" for number in range(10))

    def test_validation_images_are_taken_from_the_training_images(self, source, no_network):
        root, images, labels = source
        cifar = load_cifar10(str(root), validation=30)
        assert torch.bincount(cifar.validation.labels).tolist() == [3] * 10
        assert sorted(rows(cifar.train, cifar.validation)) == sorted(
            rows(TensorImages(images[:100], labels[:100]))
        )
        assert len(cifar.test) == 20
        with pytest.raises(ValueError, match="validation must be 0 or an integer from 10 to 90"):
            load_cifar10(root, validation=91)

    def test_missing_and_offline(self, tmp_path, no_network):
        message = (
            f"CIFAR-10 is not in {tmp_path / 'cifar-10-batches-py'}, or damaged there, and could "
            "not be downloaded (<urlopen error no network here>). Put cifar-10-python.tar.gz (md5 "
            f"c58f30108f718f92721af3b95e74349a) unpacked into {tmp_path}, or name another folder "
            "in params.yaml (data.root) or the environment variable IREVNET_DATA"
        )
        with pytest.raises(ValueError, match=re.escape(message)):
            load_cifar10(tmp_path)

    @pytest.mark.parametrize("name", ["data_batch_3", "test_batch", "batches.meta"])
    @pytest.mark.parametrize("damage", ["changed", "missing"])
    def test_damaged_and_offline(self, source, no_network, name, damage):
        path = source[0] / "cifar-10-batches-py" / name
        if damage == "missing":
            path.unlink()
        else:
            path.write_bytes(path.read_bytes()[:-1] + b"!")
        with pytest.raises(ValueError, match="or damaged there, and could not be downloaded"):
            load_cifar10(source[0])

    def test_it_is_downloaded_if_it_is_not_there(self, source, tmp_path, monkeypatch):
        folder = source[0] / "cifar-10-batches-py"
        hidden = folder.rename(tmp_path / "elsewhere")
        monkeypatch.setattr(
            "torchvision.datasets.cifar.download_and_extract_archive",
            lambda url, root, filename, md5: hidden.rename(folder),
        )
        assert len(load_cifar10(source[0]).train) == 100


class TestImageFolders:
    @pytest.fixture
    def root(self, tmp_path):
        """Three classes with twelve, six and six training images, two for tests; one is grey."""
        generator = np.random.default_rng(0)
        for part, counts in {"train": (12, 6, 6), "val": (2, 2, 2)}.items():
            for name, count in zip(("ant", "bee", "cat"), counts, strict=True):
                (tmp_path / part / name).mkdir(parents=True)
                for index in range(count):
                    pixels = generator.integers(0, 256, (40 + index, 60, 3), np.uint8)
                    image = Image.fromarray(pixels)
                    if (part, name, index) == ("val", "bee", 0):
                        image = image.convert("L")
                    image.save(tmp_path / part / name / f"{index:02}.jpg")
        return tmp_path

    def test_sizes_classes_and_values(self, root):
        folders = load_image_folders(root, size=16, workers=0)
        assert folders.classes == ("ant", "bee", "cat")
        assert [len(getattr(folders, part)) for part in PARTS] == [24, 0, 6]
        batches = list(folders.test.batches(4))
        assert [x.shape for x, _ in batches] == [(4, 3, 16, 16), (2, 3, 16, 16)]
        x, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
        assert labels.tolist() == [0, 0, 1, 1, 2, 2]
        assert x.dtype == torch.float32
        assert x.min() >= 0
        assert 0.5 < x.max() <= 1

    def test_a_grey_image_gets_three_equal_channels(self, root):
        folders = load_image_folders(root, size=16, workers=0)
        x, _ = next(folders.test.batches(6))
        grey = (x == x[:, :1]).flatten(1).all(1)
        assert grey.tolist() == [False, False, True, False, False, False]

    def test_evaluation_crops_the_centre_of_the_scaled_image(self, tmp_path):
        pixels = np.zeros((64, 128, 3), np.uint8)
        pixels[:, 64:] = 255  # black on the left, white on the right
        (tmp_path / "class").mkdir()
        Image.fromarray(pixels).save(tmp_path / "class" / "image.png")
        # After scaling to 32x64 and cropping to 28x28, two columns beside the edge are blurred.
        ((image,), _) = FolderImages(tmp_path, 28, workers=0).first(1)
        torch.testing.assert_close(image[:, :, :12], torch.zeros(3, 28, 12), atol=0.02, rtol=0)
        torch.testing.assert_close(image[:, :, 16:], torch.ones(3, 28, 12), atol=0.02, rtol=0)

    def test_validation_is_taken_from_the_training_images(self, root):
        folders = load_image_folders(root, size=16, validation=8, workers=0)
        assert [len(getattr(folders, part)) for part in PARTS] == [16, 8, 6]
        assert not set(folders.train.indices) & set(folders.validation.indices)
        labels = [label for _, labels in folders.validation.batches(3) for label in labels.tolist()]
        assert labels == [0, 0, 0, 0, 1, 1, 2, 2]
        again = load_image_folders(root, size=16, validation=8, workers=0)
        assert again.validation.indices == folders.validation.indices

    def test_first_spreads_over_the_classes(self, root):
        x, labels = load_image_folders(root, size=16, workers=0).train.first(4)
        assert x.shape == (4, 3, 16, 16)
        assert labels.tolist() == [0, 0, 1, 2]

    @pytest.mark.parametrize(
        ("count", "sizes"),
        [(5, [1] * 5), (10, [2] * 5), (13, [3, 3, 2, 3, 2]), (15, [3] * 5), (99, [5] * 5)],
    )
    def test_a_subset_of_any_size_has_its_part_of_every_class(self, tmp_path, count, sizes):
        for name in "abcde":
            (tmp_path / name).mkdir()
            for index in range(5):
                Image.new("RGB", (9, 9)).save(tmp_path / name / f"{index}.png")
        images = FolderImages(tmp_path, 8, workers=0)
        subset = images.subset(count)
        labels = torch.tensor([images.files[index][1] for index in subset.indices])
        assert torch.bincount(labels).tolist() == sizes
        assert len(set(subset.indices)) == sum(sizes)
        assert torch.equal(images.first(count)[1], labels)
        assert len(images.subset(0)) == len(images.of_classes([]).subset(3)) == 0

    def test_a_subset_of_an_nth_of_the_set_takes_every_nth_image(self, root):
        images = load_image_folders(root, size=8, workers=0).train
        for step in (1, 2, 3, 4, 6, 8, 12, 24):
            assert images.subset(24 // step).indices == list(range(24))[::step]

    def test_every_image_is_in_one_shard(self, root):
        images = load_image_folders(root, size=8, workers=0).train
        shards = [images.shard(rank, 5) for rank in range(5)]
        assert sorted(index for shard in shards for index in shard.indices) == images.indices
        assert {len(shard) for shard in shards} == {4, 5}

    @pytest.mark.parametrize("workers", [0, 1])
    def test_reading_leaves_the_global_generator_as_it_was(self, root, workers):
        data = load_image_folders(root, size=8, workers=workers)
        state = torch.get_rng_state()
        list(data.test.batches(3))
        list(data.train.training_batches(8, Augmentation(), TrainingPass(0, 0)))
        assert torch.equal(torch.get_rng_state(), state)

    def test_some_classes(self, root):
        data = load_image_folders(root, size=8, workers=0)
        some = data.train.of_classes([0, 2])
        assert len(some) == 18
        assert some.first(18)[1].tolist() == [0] * 12 + [2] * 6
        assert len(data.train) == 24
        drawn = data.of_classes(2)
        labels = set(drawn.test.first(4)[1].tolist())
        assert len(labels) == 2
        assert labels == set(drawn.train.first(100)[1].tolist())
        assert drawn.classes == data.classes
        assert any(
            set(data.of_classes(2, seed).test.first(4)[1].tolist()) != labels for seed in range(9)
        )
        with pytest.raises(ValueError, match="count must be from 1 to 3 classes, got 4"):
            data.of_classes(4)

    def test_test_images_can_be_divided_where_there_are_no_others(self, root):
        shutil.rmtree(root / "train")
        data = load_image_folders(root, size=8, workers=0, divided=True)
        assert (len(data.train), len(data.validation), len(data.test)) == (3, 0, 3)
        files = [[part.files[index] for index in part.indices] for part in (data.train, data.test)]
        assert not set(files[0]) & set(files[1])
        for part in files:
            assert [label for _, label in part] == [0, 1, 2]
        assert list(data.validation.batches(4)) == []
        (root / "val" / "bee" / "00.jpg").unlink()
        with pytest.raises(ValueError, match="bee has one image: not divisible"):
            load_image_folders(root, size=8, divided=True)
        with pytest.raises(ValueError, match="divided images have no validation images"):
            load_image_folders(root, validation=3, divided=True)
        with pytest.raises(ValueError, match=r"no folder .*val: divided image folders need"):
            load_image_folders(root / "nothing", divided=True)

    def test_a_subset_leaves_the_set_as_it_was(self, root):
        images = load_image_folders(root, size=8, workers=0).train
        count = len(images)
        few = images.subset(3)
        assert len(few) == 3
        assert len(images) == count
        _, labels = few.first(3)
        assert labels.tolist() == [0, 0, 1]
        assert len(images.subset(1000)) == count

    def test_training_batches_are_shuffled_and_complete(self, root):
        folders = load_image_folders(root, size=16, workers=0)

        def draw(seed):
            torch.manual_seed(seed)
            return list(folders.train.training_batches(5, Augmentation(), TrainingPass(seed, 0)))

        batches = draw(1)
        assert [x.shape for x, _ in batches] == [(5, 3, 16, 16)] * 4
        labels = torch.cat([labels for _, labels in batches]).tolist()
        assert labels != sorted(labels)
        x = torch.cat([x for x, _ in batches])
        assert x.min() >= 0
        assert x.max() <= 1
        assert torch.equal(torch.cat([x for x, _ in draw(1)]), x)
        assert not torch.equal(torch.cat([x for x, _ in draw(2)]), x)

    def test_to_returns_the_set_itself(self, root):
        images = load_image_folders(root, size=16, workers=0).test
        assert images.to("meta") is images

    @pytest.mark.parametrize("part", ["train", "val"])
    def test_missing_folder(self, root, part):
        (root / part).rename(root / "other")
        message = (
            f"no folder {root / part}: image folders need train/CLASS/FILE and val/CLASS/FILE "
            "under data.root of params.yaml or IREVNET_DATA"
        )
        with pytest.raises(ValueError, match=re.escape(message)):
            load_image_folders(root)

    def test_a_class_without_images(self, root):
        (root / "train" / "dog").mkdir()
        message = f"class folder {root / 'train' / 'dog'} has no images; their names end in .jpg"
        with pytest.raises(ValueError, match=re.escape(message)):
            load_image_folders(root)

    def test_no_classes(self, tmp_path):
        for part in ("train", "val"):
            (tmp_path / part / ".ipynb_checkpoints").mkdir(parents=True)
        with pytest.raises(ValueError, match=rf"{re.escape(str(tmp_path))}/train has no class"):
            load_image_folders(tmp_path)

    def test_hidden_folders_and_files_are_left_out(self, root):
        for place in ("train/.ipynb_checkpoints", "train/ant/.ipynb_checkpoints"):
            (root / place).mkdir()
            shutil.copy(root / "train/ant/00.jpg", root / place)
        shutil.copy(root / "train/ant/00.jpg", root / "train/ant/._00.jpg")
        folders = load_image_folders(root, size=16, workers=0)
        assert folders.classes == ("ant", "bee", "cat")
        assert len(folders.train) == 24

    def test_the_same_folder_twice(self, root):
        shutil.rmtree(root / "val")
        (root / "val").symlink_to(root / "train")
        with pytest.raises(ValueError, match="train and val are the same folder"):
            load_image_folders(root)

    def test_a_link_to_a_parent_folder(self, root):
        (root / "train" / "ant" / "inside").symlink_to(root)
        assert len(load_image_folders(root, size=16, workers=0).train) == 24
        (root / "train" / "loop").symlink_to(root)
        with pytest.raises(ValueError, match=r"train/loop is a link to a folder that it lies in"):
            load_image_folders(root)

    def test_a_class_may_be_a_link(self, root):
        (root / "train" / "bee").rename(root / "elsewhere")
        (root / "train" / "bee").symlink_to(root / "elsewhere")
        assert len(load_image_folders(root, size=16, workers=0).train) == 24

    @pytest.mark.parametrize("workers", [0, 1])
    @pytest.mark.parametrize("damage", ["truncated", "empty", "text"])
    def test_a_damaged_file_is_named(self, root, damage, workers):
        path = root / "val" / "bee" / "01.jpg"
        content = {"truncated": path.read_bytes()[:600], "empty": b"", "text": b"no image"}
        path.write_bytes(content[damage])
        folders = load_image_folders(root, size=16, workers=workers)
        with pytest.raises(ValueError, match=rf"{re.escape(str(path))} cannot be read as an image"):
            list(folders.test.batches(2))

    def test_different_classes(self, root):
        (root / "val" / "cat").rename(root / "val" / "dog")
        message = f"{root}: train and val have different class folders: ['cat', 'dog']"
        with pytest.raises(ValueError, match=re.escape(message)):
            load_image_folders(root)


class TestReadImage:
    @pytest.mark.parametrize(
        ("mode", "pixel", "expected"),
        [
            ("RGB", (10, 20, 30), (10, 20, 30)),
            ("L", 200, (200, 200, 200)),
            ("1", 1, (255, 255, 255)),
            ("LA", (200, 0), (200, 200, 200)),
            ("RGBA", (10, 20, 30, 0), (10, 20, 30)),
            ("I;16", 40000, (156, 156, 156)),
        ],
    )
    def test_becomes_8_bit_rgb(self, tmp_path, mode, pixel, expected):
        path = tmp_path / "image.png"
        Image.new(mode, (3, 2), pixel).save(path)
        image = read_image(path)
        assert (image.mode, image.size) == ("RGB", (3, 2))
        assert image.getpixel((1, 1)) == expected

    def test_cmyk(self, tmp_path):
        path = tmp_path / "image.jpg"
        Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(path, quality=100)
        red, green, blue = read_image(path).getpixel((8, 8))
        assert red > 240
        assert max(green, blue) < 15

    def test_the_name_may_say_another_format(self, tmp_path):
        Image.new("RGB", (3, 2), (1, 2, 3)).save(tmp_path / "image.jpg", format="PNG")
        assert read_image(tmp_path / "image.jpg").getpixel((0, 0)) == (1, 2, 3)

    def test_a_named_pipe_is_refused(self, tmp_path):
        os.mkfifo(tmp_path / "pipe.jpg")
        with pytest.raises(ValueError, match=r"pipe\.jpg is not a regular file"):
            read_image(tmp_path / "pipe.jpg")

    @pytest.mark.parametrize("size", [(1, 20000), (65, 1)])
    def test_a_stripe_is_refused(self, tmp_path, size):
        Image.new("L", size).save(tmp_path / "stripe.png")
        message = f"stripe.png cannot be read as an image: .* got {size[0]} x {size[1]}"
        with pytest.raises(ValueError, match=message):
            read_image(tmp_path / "stripe.png")

    def test_a_huge_image_is_refused_before_it_is_decoded(self, tmp_path):
        # A header alone: 100,000 x 100,000 pixels.
        path = tmp_path / "huge.ppm"
        path.write_bytes(b"P6 100000 100000 255\n")
        with pytest.raises(ValueError, match=r"huge\.ppm cannot be read as an image"):
            read_image(path)

    def test_floating_point_values_are_refused(self, tmp_path):
        Image.new("F", (4, 4)).save(tmp_path / "image.tiff")
        with pytest.raises(ValueError, match=r"image\.tiff .*floating-point values have no range"):
            read_image(tmp_path / "image.tiff")


class TestLoadData:
    def test_digits(self, monkeypatch):
        monkeypatch.setenv("IREVNET_DATA", "/nowhere")
        assert fingerprint(load_data("digits", validation=180).train) == "1ea7f5eee280086c"

    @pytest.mark.parametrize("variable", [None, "", "folder"])
    @pytest.mark.parametrize("name", ["cifar10", "folders"])
    def test_the_environment_variable_overrides_the_root(
        self, name, variable, tmp_path, monkeypatch
    ):
        roots = []
        monkeypatch.setattr(
            "irevnet.data.datasets.load_cifar10", lambda root, validation: roots.append(root)
        )
        monkeypatch.setattr(
            "irevnet.data.datasets.load_image_folders",
            lambda root, **options: roots.append(root),
        )
        if variable is None:
            monkeypatch.delenv("IREVNET_DATA", raising=False)
        else:
            monkeypatch.setenv("IREVNET_DATA", variable)
        load_data(name, root="given")
        assert roots == [variable or "given"]

    def test_arguments_are_passed_on(self, tmp_path, monkeypatch):
        monkeypatch.delenv("IREVNET_DATA", raising=False)
        with pytest.raises(ValueError, match=re.escape(f"no folder {tmp_path / 'train'}")):
            load_data("folders", root=tmp_path)

    @pytest.mark.parametrize("name", ["mnist", "", None, 3])
    def test_unknown_name(self, name):
        message = f"data must be 'digits', 'cifar10' or 'folders', got {name!r}"
        with pytest.raises(ValueError, match=re.escape(message)):
            load_data(name)
