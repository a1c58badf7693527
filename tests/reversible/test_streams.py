import hashlib
import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

import irevnet
from irevnet.reversible.streams import FixedPointStreams, straight_through
from networks import IREVNETS, SMALL, randomise


def fixed(name, *, training=False, backward="stored", **overrides):
    """A small float32 network with fixed-point streams, far from its initial weights."""
    torch.manual_seed(0)
    small = {"num_classes": 5, **SMALL[name], "dropout": 0.0}
    small = {**small, "streams": "fixed", "backward": backward, **overrides}
    return randomise(irevnet.create_model(name, **small)).train(training)


def photographs(model, count=4):
    """Random images with 256 grey levels."""
    return torch.randint(0, 256, (count, *model.in_shape)).float() / 255


class TestArithmetic:
    def test_reading_and_writing_are_exact_on_the_grid_and_round_off_it(self):
        streams = FixedPointStreams(8, torch.float32)
        x = torch.tensor([0.0, 1.0, -2.5, 1 / 256, 0.49 / 256, 0.51 / 256])
        assert streams.write(x).tolist() == [0, 256, -640, 1, 0, 1]
        assert streams.write(x).dtype == torch.int32
        assert torch.equal(streams.read(streams.write(x[:4])), x[:4])

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
    def test_subtracting_what_was_added_gives_the_same_bits(self, dtype):
        streams = FixedPointStreams(16, torch.float32)
        stream = torch.randint(-(2**29), 2**29, (1000,), dtype=torch.int32)
        residual = (torch.randn(1000) * 100).to(dtype)
        assert torch.equal(streams.subtract(streams.add(stream, residual), residual), stream)

    def test_weights_of_the_checksum_are_those_of_splitmix64_made_odd(self):
        """Against the published generator with seed 0, in whole numbers of any size."""
        expected, state, mask = [], 0, 2**64 - 1
        for _ in range(100):
            state = (state + 0x9E3779B97F4A7C15) & mask
            z = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
            z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
            expected.append((z ^ (z >> 31)) | 1)
        assert expected[0] == 0xE220A8397B1DCDAF
        unit = torch.eye(100, dtype=torch.int32)
        actual = FixedPointStreams(16, torch.float32).checksum(unit[:, :50], unit[:, 50:])
        assert [weight & mask for weight in actual.tolist()] == expected

    @pytest.mark.parametrize(
        "pattern", [(1,), (2**31 - 1,), (1, -1), (1, -1, -1, 1), (1, -2, 1), (1, -3, 3, -1)]
    )
    def test_a_checksum_sees_every_bit_and_differences_with_a_pattern(self, pattern):
        streams = FixedPointStreams(16, torch.float32)
        halves = torch.randint(-(2**29), 2**29, (2, 50, 4, 3, 3), dtype=torch.int32)
        changed = halves.clone()
        for index, row in enumerate(changed.flatten(2)[0]):
            start = index % (row.numel() - len(pattern) + 1)
            row[start : start + len(pattern)] += torch.tensor(pattern, dtype=torch.int32)
        assert streams.checksum(*changed).dtype == torch.int64
        assert (streams.checksum(*changed) != streams.checksum(*halves)).all()
        assert torch.equal(streams.checksum(*halves.clone()), streams.checksum(*halves))

    @pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan, 1e30])
    def test_values_without_a_fixed_point_number_count_as_an_overflow(self, value):
        streams = FixedPointStreams(16, torch.float32)
        peak = streams.peak(streams.write(torch.tensor([0.0, value])))
        with pytest.raises(ValueError, match="fixed-point overflow at the entry"):
            streams.check([peak])

    def test_straight_through_has_the_values_of_one_and_the_gradient_of_the_other(self):
        exact = torch.tensor([0.4, 0.6], requires_grad=True)
        result = straight_through(exact.detach().round(), exact)
        assert result.tolist() == [0, 1]
        result.backward(torch.tensor([3.0, 5.0]))
        assert exact.grad.tolist() == [3, 5]


class TestInverse:
    @pytest.mark.parametrize("training", [False, True])
    @pytest.mark.parametrize("name", IREVNETS)
    def test_images_and_representations_come_back_to_the_bit(self, name, training):
        model = fixed(name, training=training)
        x = photographs(model)
        z = model.encode(x)
        assert z.dtype == torch.int32
        back = model.inverse(z)
        assert torch.equal(back, (x * 2**16).round() / 2**16)
        assert torch.equal((back * 255).round(), x * 255)
        assert torch.equal(model.encode(back), z)

    @pytest.mark.parametrize("name", IREVNETS)
    def test_with_f_in_bfloat16(self, name):
        model = fixed(name, training=True)
        x = photographs(model)
        with torch.autocast("cpu", torch.bfloat16):
            z = model.encode(x)
            back = model.inverse(z)
        assert torch.equal(back, (x * 2**16).round() / 2**16)

    @pytest.mark.parametrize("name", ["irevnet_a", "irevnet_b"])
    def test_the_papers_networks_at_full_depth(self, name):
        model = irevnet.create_model(name, streams="fixed")
        x = torch.randint(0, 256, (2, 3, 64, 64)).float() / 255
        with torch.no_grad():
            for training in (False, True):
                z = model.train(training).encode(x)
                assert torch.equal((model.inverse(z) * 255).round(), x * 255)

    def test_images_come_back_from_a_trained_network(self):
        model = irevnet.create_model(
            "irevnet_digits_bijective", pretrained="digits", streams="fixed"
        )
        x = photographs(model, 16)
        assert torch.equal((model.inverse(model.encode(x)) * 255).round(), x * 255)

    def test_logits_are_those_of_floating_point_up_to_the_rounding(self):
        model = fixed("irevnet_digits", fraction_bits=20)
        plain = fixed("irevnet_digits", streams="float")
        x = photographs(model)
        torch.testing.assert_close(model(x), plain(x), atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(model.classify(model.encode(x)), model(x), atol=1e-5, rtol=0)

    def test_a_picture_file_has_the_same_hash_after_encoding_and_inversion(self):
        def png(pixels):
            file = io.BytesIO()
            Image.fromarray(pixels).save(file, "PNG")
            return file.getvalue()

        model = fixed("irevnet_cifar_bijective", in_shape=(3, 32, 32))
        picture = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        x = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255
        back = model.inverse(model.encode(x))
        pixels = (back[0].permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
        assert hashlib.sha256(png(pixels)).digest() == hashlib.sha256(png(picture)).digest()


class TestGradients:
    @pytest.mark.parametrize("training", [False, True])
    @pytest.mark.parametrize("name", IREVNETS)
    def test_stored_and_reversible_are_identical(self, name, training):
        gradients = []
        for backward in ("stored", "reversible"):
            model = fixed(name, training=training, backward=backward)
            torch.manual_seed(1)
            x = photographs(model).requires_grad_()
            functional.cross_entropy(model(x), torch.arange(len(x)) % 5).backward()
            gradients.append([x.grad, *(p.grad for p in model.parameters())])
        for stored, reversible in zip(*gradients, strict=True):
            assert torch.equal(stored, reversible)

    def test_they_are_near_those_of_floating_point(self):
        gradients = []
        for streams in ("float", "fixed"):
            model = fixed("irevnet_digits_bijective", streams=streams, fraction_bits=22)
            torch.manual_seed(1)
            x = photographs(model)
            functional.cross_entropy(model(x), torch.arange(len(x)) % 5).backward()
            gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
        plain, rounded = gradients
        assert (plain - rounded).norm() < 1e-3 * plain.norm()


class TestErrors:
    def test_an_overflow_names_the_block_and_the_magnitude(self):
        model = fixed("irevnet_digits", fraction_bits=24)
        with torch.no_grad():
            model.blocks[2].residual[-1].weight.fill_(1000.0)
        for call in (model.encode, model, fixed_reversible(model)):
            with pytest.raises(
                ValueError, match=r"after block 2: magnitude [\d.]+ or more, .*less than 64; use"
            ):
                call(photographs(model))

    def test_an_image_out_of_range_is_refused(self):
        model = fixed("irevnet_digits")
        with pytest.raises(ValueError, match="overflow at the entry: magnitude 16384 or more"):
            model.encode(torch.full((1, 1, 8, 8), 1e6))

    @pytest.mark.parametrize("bits", [7, 25, 16.0, None, "16"])
    def test_fraction_bits_out_of_range_are_refused(self, bits):
        with pytest.raises(ValueError, match="fraction_bits must be an integer from 8 to 24, got"):
            irevnet.create_model("irevnet_digits", streams="fixed", fraction_bits=bits)

    def test_unknown_streams_are_refused(self):
        with pytest.raises(ValueError, match=r"streams must be one of .*, got 'int8'"):
            irevnet.create_model("irevnet_digits", streams="int8")

    def test_a_representation_of_the_other_kind_is_refused(self):
        model = fixed("irevnet_digits")
        z = model.encode(photographs(model))
        for call in (model.inverse, model.classify):
            with pytest.raises(
                ValueError, match=r"must be int32 with fixed-point streams, got .*float"
            ):
                call(z.float())
        plain = fixed("irevnet_digits", streams="float")
        for call in (plain.inverse, plain.classify):
            with pytest.raises(
                ValueError, match=r"z must be floating point, got dtype torch\.int32"
            ):
                call(z)


def fixed_reversible(model):
    """The same network with the reversible backward."""
    other = fixed("irevnet_digits", fraction_bits=24, backward="reversible")
    other.load_state_dict(model.state_dict())
    return other
