"""Pictures of any source are the same tensors, and one that cannot be read is named with its file and row."""

import io
import struct
import zlib

import numpy as np
import pyarrow as pa
import pytest
from pictures import NAMES, drawn, encoded, task, tensors, vit, write_folder, write_parquet, write_saved
from PIL import Image
from test_task_configs import LOCAL_DATA, node

from fedsa_lora.errors import ConfigError, DataError
from fedsa_lora.launch.plan import make_plan
from fedsa_lora.tasks.fingerprint import of_rows
from fedsa_lora.tasks.image_bytes import PNG, is_cut_off
from fedsa_lora.tasks.images import ORIENTATION
from fedsa_lora.tasks.inspection import inspect_task
from fedsa_lora.tasks.model_settings import ModelSettings
from fedsa_lora.tasks.partition import PartitionSettings


@pytest.mark.parametrize("channels", [1, 3])
def test_folder_parquet_and_npz_of_the_same_pictures_give_equal_tensors(tmp_path, channels):
    pixels, labels = drawn(12, channels=channels)
    images = [encoded(each) for each in pixels]
    named = np.array([NAMES[label] for label in labels])
    np.savez_compressed(tmp_path / "rows.npz", images=pixels, labels=named)
    np.savez(tmp_path / "more.npz", x=pixels.reshape(12, 8, 8, -1), y=named)
    sources = [
        write_folder(tmp_path / "folder", images, labels),
        write_parquet(tmp_path / "raw.parquet", images, labels),
        write_saved(tmp_path / "saved", images, named),
        write_parquet(tmp_path / "hub.parquet", [{"bytes": i, "path": "x.png"} for i in images], labels),
        str(tmp_path / "rows.npz"),
        str(tmp_path / "more.npz"),
    ]
    first, *others = [tensors(task(source)) for source in sources]
    assert first[0].shape == (12, 3, 8, 8)
    assert first[0].dtype == np.float32
    assert first[1] == sorted(named)
    for pictures, names in others:
        np.testing.assert_array_equal(pictures, first[0])
        assert names == first[1]
    raw, *others = (of_rows(task(source).data)["train rows"] for source in sources[1:4])
    assert others == [raw, raw]


def test_folders_for_splits_are_recognised_and_a_missing_one_is_named(tmp_path):
    pixels, labels = drawn(9)
    images = [encoded(each) for each in pixels]
    for split, part in (("train", slice(0, 6)), ("test", slice(6, 9))):
        write_folder(tmp_path / split, images[part], labels[part])
    both = task(str(tmp_path), test_split="test")
    assert (len(both.data.train), len(both.data.test)) == (6, 3)
    assert len(task(str(tmp_path)).data.train) == 6
    assert not any("is not read" in note for note in both.describe().notes)
    (note,) = task(str(tmp_path)).describe().notes
    assert "the split 'test' is not read" in note
    assert "task.test_split=test measures" in note
    (tmp_path / "test").rename(tmp_path / "val")
    assert "task.test_split=val measures" in task(str(tmp_path)).describe().notes[0]
    (tmp_path / "val").rename(tmp_path / "test")
    for split in ("train", "dev"):
        source = write_parquet(tmp_path / "tables" / f"{split}.parquet", images, labels)
    files = {"train": source, "test": source}
    for fields, split in (
        ({"dataset": str(tmp_path / "tables")}, "dev"),
        ({"dataset": "", "files": files}, "test"),
    ):
        (note,) = task(**fields).describe().notes
        assert f"task.test_split={split} measures" in note
        assert task(**fields, test_split=split).describe().notes == ()
    assert task(source).describe().notes == ()
    (tmp_path / "train" / "loose.png").write_bytes(images[0])
    assert len(task(str(tmp_path)).data.train) == 6, "a loose image makes no class of its split"
    with pytest.raises(DataError, match=r"no split 'tset' \(did you mean 'test'\?\): there are folders for"):
        task(str(tmp_path), test_split="tset").places()
    with pytest.raises(DataError, match="no split 'test': there are images, in folders of their classes"):
        task(str(tmp_path / "train"), test_split="test").places()


def test_folders_inside_a_class_hide_no_class_and_what_is_left_out_is_remarked(tmp_path):
    pixels, labels = drawn(6)
    images = [encoded(each) for each in pixels]
    source = write_folder(tmp_path, images, labels)
    assert task(source).describe().notes == ()
    write_folder(tmp_path / "cat", images, labels)  # one with folders, as a folder of splits has
    (tmp_path / "horse").mkdir()
    (tmp_path / "dog" / "004.png").rename(tmp_path / "dog" / "004.JFIF")
    (tmp_path / "dog" / "page.heic").write_bytes(images[0])
    (tmp_path / "loose.png").write_bytes(images[0])
    found = task(source)
    assert (len(found.data.train), found.labels()) == (6, NAMES)
    notes = " ".join(found.describe().notes)
    assert "no class, as it has no image: horse" in notes
    assert "outside the folders of classes are not read: loose.png" in notes
    assert "not read: cat/cat, cat/dog, cat/owl" in notes
    assert "not images by their names: 1 .heic" in notes


def test_a_folder_that_cannot_be_read_says_what_was_expected(tmp_path):
    pixels, labels = drawn(6)
    images = [encoded(each) for each in pixels]
    source = write_folder(tmp_path / "folder", images, labels)
    with pytest.raises(DataError, match=r"no column 'img' .* name the right one in the task$"):
        task(source, image="img").read()
    with pytest.raises(DataError, match=r"no folder for each class of them.* as CLASS/000.png"):
        task(str(tmp_path / "folder" / "cat")).read()
    for path in (tmp_path / "folder" / "cat").iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError, match=r"cat/000.png is empty; copy it again, or remove it"):
        task(source).read()
    for name in ("cat", "dog"):
        for path in (tmp_path / "folder" / name).iterdir():
            path.rename(path.with_suffix(""))
    with pytest.raises(DataError, match=r"every row has the label owl.*left out.*4 without an ending"):
        task(source).read()


def test_a_grey_image_equals_its_copy_in_three_channels(tmp_path):
    grey, labels = drawn(6, channels=1)
    one = write_parquet(tmp_path / "grey.parquet", [encoded(each) for each in grey], labels)
    copied = [encoded(np.repeat(each[..., None], 3, axis=2)) for each in grey]
    three = write_parquet(tmp_path / "copied.parquet", copied, labels)
    np.testing.assert_array_equal(tensors(task(one))[0], tensors(task(three))[0])
    narrow = vit(num_channels=1)
    pictures = tensors(task(one, narrow))[0]
    np.testing.assert_array_equal(pictures, tensors(task(three, narrow))[0])
    assert pictures.shape == (6, 1, 8, 8)


def test_classes_are_chosen_by_name_or_number_in_their_order(tmp_path):
    pixels, labels = drawn(9)
    source = write_parquet(tmp_path / "rows.parquet", [encoded(each) for each in pixels], labels)
    chosen = task(source, classes=["owl", 0])
    assert chosen.labels() == ("owl", "cat")
    assert chosen.data.train.labels.tolist() == [1, 0] * 3
    assert chosen.data.train.left_out == {"by task.classes": 3}
    np.testing.assert_array_equal(tensors(chosen)[0], tensors(task(source))[0][[0, 1, 2, 6, 7, 8]])
    assert task("nowhere.npz", class_names=list(NAMES), classes=[2, "dog"]).labels() == ("owl", "dog")
    with pytest.raises(DataError, match=r"no class 'dgo' \(did you mean 'dog'\?\)"):
        task(source, classes=["dgo", "cat"]).read()
    with pytest.raises(DataError, match="at least two classes, each of them once"):
        task(source, classes=["cat", 0]).read()


@pytest.mark.parametrize(
    ("broken", "fault"),
    [
        (b"no image at all", "row 2 is not a readable image"),
        (
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n",
            r"row 2 is not a readable image; replace",
        ),
        (encoded(drawn(1)[0][0])[:-40], "row 2 is not a readable image"),
        (None, "row 2 has no image"),
    ],
)
def test_an_image_that_cannot_be_read_is_named_and_what_is_sent_quotes_nothing(tmp_path, broken, fault):
    pixels, labels = drawn(4)
    images = [encoded(each) for each in pixels]
    source = write_parquet(tmp_path / "rows.parquet", [images[0], broken, *images[2:]], labels)
    with pytest.raises(DataError, match=f"rows.parquet, column 'image': {fault}") as caught:
        tensors(task(source))
    assert caught.value.key == "task.image"
    assert "rows.parquet" not in caught.value.sendable


def test_a_folder_names_the_file_and_the_plan_looks_at_every_header(tmp_path):
    pixels, labels = drawn(6)
    source = write_folder(tmp_path, [encoded(each) for each in pixels], labels)
    assert inspect_task(task(source))
    (tmp_path / "owl" / "005.png").write_bytes(b"a page of an album")
    with pytest.raises(DataError, match=r"owl/005.png, column 'image': row 6 is not a readable image"):
        inspect_task(task(source))


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_the_plan_finds_an_image_that_is_cut_off_and_lets_be_what_stands_behind_one(tmp_path, kind):
    pixels, labels = drawn(6, side=32)
    images = [encoded(each, kind) for each in pixels]
    paths = [tmp_path / "owl" / "002.png", tmp_path / "owl" / "005.png"]
    source = write_folder(tmp_path, images, labels)
    paths[0].write_bytes(images[2] + b"\0\n")
    paths[1].write_bytes(images[5] + b"a trailer \xff\xda" * 1000)
    assert len(inspect_task(task(source, vit(image_size=32)))) == 2
    any_size = {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8], "depths": [1]}
    for model in (vit(image_size=32), ModelSettings(pretrained=False, config=any_size)):
        for left in (0.95, 0.5):
            paths[1].write_bytes(images[5][: int(len(images[5]) * left)])
            with pytest.raises(
                DataError, match=r"owl/005.png, column 'image': row 6 is not a readable image"
            ) as caught:
                inspect_task(task(source, model))
            assert caught.value.key == "task.image"


def test_the_end_of_a_preview_is_not_that_of_its_image():
    preview = encoded(drawn(1)[0][0], "JPEG")
    file, exif = io.BytesIO(), b"Exif\0\0" + preview
    Image.fromarray(drawn(1, side=32)[0][0]).save(file, "JPEG", exif=exif, progressive=True)
    whole = file.getvalue()
    assert preview in whole
    assert not is_cut_off(whole)
    assert is_cut_off(whole[:-100])


def test_files_that_a_table_only_names_are_not_read(tmp_path):
    (tmp_path / "secret.png").write_bytes(encoded(drawn(1)[0][0]))
    named = {"bytes": None, "path": str(tmp_path / "secret.png")}
    there = {"bytes": encoded(drawn(1)[0][0]), "path": None}
    source = write_parquet(tmp_path / "rows.parquet", [there, named, there], [0, 1, 2])
    with pytest.raises(DataError, match=r"row 2 has no image \(a path alone is not followed\)"):
        task(source).read()


def test_arrays_that_are_no_pixels_are_refused(tmp_path):
    labels = np.arange(4)
    for array, fault in (
        (
            np.zeros((4, 8, 8)),
            r"float64 \(4, 8, 8\); expected .* uint8.*: save \(x \* 255\).astype\('uint8'\)",
        ),
        (np.zeros((4, 8, 8), np.uint16), r"scale it to 0 to 255 and save x.astype\('uint8'\)"),
        (
            np.zeros((4, 3, 8, 8), np.uint8),
            r"uint8 \(4, 3, 8, 8\); expected .*: save x.transpose\(0, 2, 3, 1\)",
        ),
        (np.eye(4), r"of labels as one-hot vectors take x.argmax\(1\)"),
        (np.zeros((3, 8, 8), np.uint8), "'image' has 3 rows and 'label' has 4"),
        (np.array([None] * 4), "without arrays of objects"),
    ):
        np.savez(tmp_path / "rows.npz", image=array, label=labels)
        with pytest.raises(DataError, match=fault):
            task(str(tmp_path / "rows.npz")).read()
    np.savez(tmp_path / "rows.npz", image=np.zeros((4, 8, 8), np.uint8), label=labels)
    with pytest.raises(DataError, match="column 'image': expected one value per row, found pixels"):
        task(str(tmp_path / "rows.npz"), label="image").read()
    whole = (tmp_path / "rows.npz").read_bytes()
    (tmp_path / "rows.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="copy it again"):
        task(str(tmp_path / "rows.npz")).read()
    write_parquet(tmp_path / "rows.parquet", ["a", "b", "c"], [0, 1, 2])
    with pytest.raises(DataError, match=r"column 'image': expected images .* found string"):
        task(str(tmp_path / "rows.parquet")).read()
    with pytest.raises(DataError, match=r"no data at './absent'"):
        task("./absent").places()


def test_arrays_that_the_task_does_not_name_may_have_any_length(tmp_path):
    pixels, labels = drawn(6)
    names = {"image": "x_train", "label": "y_train"}
    np.savez(tmp_path / "keras.npz", x_train=pixels, y_train=labels[:, None], x_test=pixels[:2])
    np.savez(tmp_path / "plain.npz", x=pixels, y=labels)
    np.testing.assert_array_equal(
        tensors(task(str(tmp_path / "keras.npz"), **names))[0], tensors(task(str(tmp_path / "plain.npz")))[0]
    )
    with pytest.raises(DataError, match="'x_test' has 2 rows and 'y_train' has 6"):
        task(str(tmp_path / "keras.npz"), **names | {"image": "x_test"}).read()


def test_bytes_of_any_arrow_type_are_images(tmp_path):
    pixels, labels = drawn(6)
    images = [encoded(each) for each in pixels]
    sources = [
        write_parquet(tmp_path / f"{kind}.parquet", pa.array(images, kind), labels)
        for kind in (pa.binary(), pa.large_binary(), pa.binary_view())
    ]
    first, *others = [tensors(task(source))[0] for source in sources]
    for each in others:
        np.testing.assert_array_equal(each, first)


def test_images_of_different_sizes_are_read_at_that_of_the_model(tmp_path):
    small, large = drawn(3)[0], drawn(3, side=12)[0]
    source = write_parquet(tmp_path / "rows.parquet", [encoded(i) for i in (*small, *large)], [0, 1, 2] * 2)
    assert tensors(task(source))[0].shape == (6, 3, 8, 8)


@pytest.mark.parametrize("kind", ["float32", "uint16"])
def test_levels_that_go_up_to_no_known_value_are_refused(tmp_path, kind):
    source = write_parquet(
        tmp_path / "deep.parquet", [encoded(np.zeros((8, 8), kind), "TIFF")] * 3, [0, 1, 2]
    )
    for look in (tensors, inspect_task):
        with pytest.raises(DataError, match=r"more than 256 levels .* save it with 8 bits"):
            look(task(source))


@pytest.mark.parametrize("kind", [0, 2, 4, 6])  # grey, colours, both with transparency
def test_of_16_bits_a_level_the_upper_8_are_read_and_the_plan_says_so(tmp_path, kind):
    channels, colours = {0: (1, 1), 2: (3, 3), 4: (2, 1), 6: (4, 3)}[kind]
    levels = np.random.default_rng(kind).integers(0, 2**16, (3, 8, 8, channels), np.uint16)
    source = write_parquet(
        tmp_path / "deep.parquet", [png_of_16_bits(each, kind) for each in levels], [0, 1, 2]
    )
    shallow = np.broadcast_to((levels[..., :colours] >> 8).astype(np.uint8), (3, 8, 8, 3))
    plain = write_parquet(tmp_path / "plain.parquet", [encoded(each) for each in shallow], [0, 1, 2])
    np.testing.assert_array_equal(tensors(task(source))[0], tensors(task(plain))[0])
    assert inspect_task(task(source))[-1].endswith(
        "deep.parquet, column 'image': row 1 (and 2 more) has 16 bits a level, of which the upper 8 are read"
    )
    assert not any("16 bits" in remark for remark in inspect_task(task(plain)))
    if kind in (0, 2):
        assert task(source).data.train.inputs.grey == (kind == 0)


def png_of_16_bits(levels: np.ndarray, kind: int) -> bytes:
    """A PNG of uint16 (height, width, channels), which Pillow does not write of colours; ``kind`` is as in
    its header."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    height, width = levels.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in levels)
    return PNG + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")


def test_a_model_of_any_size_takes_images_of_one_size(tmp_path):
    any_size = {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8], "depths": [1]}
    model = ModelSettings(pretrained=False, config=any_size)
    pixels, labels = drawn(6, side=12)
    images = [encoded(each) for each in pixels[:, :8]]
    turned, exif = io.BytesIO(), Image.Exif()
    exif[ORIENTATION] = 6
    Image.fromarray(pixels[0, :, :8]).save(turned, "JPEG", exif=exif)  # 12 x 8 that is looked at as 8 x 12
    source = write_parquet(tmp_path / "rows.parquet", [*images[:5], turned.getvalue()], labels)
    assert inspect_task(task(source, model))
    source = write_parquet(tmp_path / "mixed.parquet", [*images[:5], encoded(pixels[0])], labels)
    for look in (tensors, inspect_task):
        with pytest.raises(DataError, match="row 6 has 12 x 12 pixels, another has 8 x 12; set") as caught:
            look(task(source, model))
        assert caught.value.key == "task.size"
    assert inspect_task(task(source, model, size=8))


def test_an_image_that_is_too_large_is_refused_with_the_reason(tmp_path, monkeypatch):
    pixels, labels = drawn(3)
    wide = Image.new("1", (2**14, 2**13))
    file = io.BytesIO()
    wide.save(file, "PNG")
    source = write_parquet(tmp_path / "rows.parquet", [encoded(pixels[0])] * 2 + [file.getvalue()], labels)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2**25)
    with pytest.raises(DataError, match=r"row 3 is larger than Pillow opens \(.*exceeds limit"):
        inspect_task(task(source))


def test_nodes_with_data_of_their_own_read_images(tmp_path):
    pixels, labels = drawn(9)
    source = write_folder(tmp_path, [encoded(each) for each in pixels], labels)
    own = PartitionSettings(partitioner={})
    with pytest.raises(ConfigError, match="the classes must be fixed"):
        task("digits", partition=own)
    found = task("digits", partition=own, class_names=list(NAMES)).at(tmp_path)
    assert (found.dataset, found.labels()) == (source, NAMES)
    data = found.load_client("somebody")
    assert len(data.train) + len(data.test) == 9


@pytest.mark.parametrize("name", ["cifar10", pytest.param("mnist_20clients", marks=pytest.mark.slow)])
def test_real_images_divide_by_class_and_by_writer(name):
    folder = LOCAL_DATA / name
    if not folder.is_dir():
        pytest.skip(f"no local copy of {name} at {folder}")
    if name == "cifar10":
        fields = node("task", "cifar10") | {"image": "image", "classes": [1, 3, 5, 7, 9]}
        partition = PartitionSettings(clients=10, train_examples=[20, 20], test_examples=10)
    else:
        fields = node("task", "mnist") | {"group": "client"}
        partition = PartitionSettings(clients=20, partitioner=node("partition", "natural")["partitioner"])
    fields.pop("_target_")
    real = task(**fields | {"dataset": str(folder), "model": vit(image_size=32), "partition": partition})
    shares = real.describe().clients
    if name == "cifar10":
        assert real.labels() == ("1", "3", "5", "7", "9")
        assert real.data.train.left_out == {"by task.classes": 25000}
    else:
        assert sum(share.train for share in shares.values()) == 52492
        assert sum(share.test for share in shares.values()) == 17508
    examples = real.load_client("3").test
    assert real.collate(examples, np.arange(4))["pixel_values"].shape == (4, 3, 32, 32)


def test_the_plan_of_a_run_over_a_folder(tmp_path):
    from fedsa_lora.config.compose import load

    pixels, labels = drawn(60, side=10)
    source = write_folder(tmp_path / "data", [encoded(each) for each in pixels], labels)
    words = ["task=image", f"task.dataset={source}", "model=tiny_vit", "federation.clients=3"]
    plan = make_plan(load([*words, f"run.dir={tmp_path / 'run'}"]))
    assert plan.federation.labels == NAMES
    assert sum(share.train + share.test for share in plan.federation.clients.values()) == 60
