"""Captioning benchmarks: COCO, Flickr30K (images), VATEX, YouCook2 (videos). CIDEr.

Sources of the formats: COCO https://cocodataset.org/#format-data; Karpathy's splits of COCO and Flickr30K
https://cs.stanford.edu/people/karpathy/deepimagesent (one file, of which each image names its split); VATEX
https://eric-xw.github.io/vatex-website; YouCook2 http://youcook2.eecs.umich.edu (every segment of a video is an item).

A record of each, cut short:

    dataset_coco.json        {"images": [{"filepath": "val2014", "filename": "COCO_val2014_000000391895.jpg", "cocoid": 391895,
                                          "split": "test", "sentences": [{"raw": "A man with a red helmet …"}, …]}]}
    captions_val2014.json    {"images": [{"id": 391895, "file_name": "COCO_val2014_000000391895.jpg"}],
                              "annotations": [{"image_id": 391895, "caption": "A man with a red helmet …"}]}
    vatex_….json             [{"videoID": "Ptf_2VRj-V0_000122_000132", "enCap": ["A man …", …]}]
    youcookii_….json         {"database": {"GLd3aX16zBg": {"subset": "training", "recipe_type": "113",
                              "annotations": [{"id": 0, "segment": [90, 102], "sentence": "spread margarine …"}]}}}
"""

from __future__ import annotations

from ..task import Example
from .files import Film, Picture, Source, identity, part, text, texts


def coco(source: Source, split: str) -> list[Example]:
    """Karpathy's split if his file is there, else the official one: "train", "val", "test" (without captions)."""
    try:
        source.find("dataset_coco.json")
    except FileNotFoundError:
        return official_coco(source, split)
    return karpathy(source, "dataset_coco.json", split)


def flickr30k(source: Source, split: str) -> list[Example]:
    return karpathy(source, "dataset_flickr30k.json", split)


def karpathy(source: Source, name: str, split: str) -> list[Example]:
    """ "train" includes "restval", the part of COCO's validation set that is in neither "val" nor "test"."""
    content, name = source.json(name)
    records = part(content, "images", name)
    wanted = {"train": ("train", "restval")}.get(split, (split,))
    places = source.places("flickr30k-images", "flickr30k_images", "coco")

    def make(record: dict) -> Example | None:
        if text(record, "split") not in wanted:
            return None
        file = text(record, "filename")
        if "cocoid" in record:
            image_id = identity(record, "cocoid")
        else:  # Flickr30K: 1000092795.jpg
            stem = file.rsplit(".", 1)[0]
            image_id = int(stem) if stem.isdecimal() and str(int(stem)) == stem else stem
        path = f"{record['filepath']}/{file}" if record.get("filepath") else file
        captions = texts([sentence["raw"] for sentence in record["sentences"]], "sentences")
        return Example(str(image_id), anywhere(places, path), captions, {"image_id": image_id})

    return source.examples(records, make, name)


def anywhere(places: tuple, path: str) -> Picture:
    """`val2014/x.jpg` may also be x.jpg, when all images are in one folder."""
    folder, _, name = path.rpartition("/")
    return Picture(tuple(p / folder for p in places) + places if folder else places, (name,))


def official_coco(source: Source, split: str) -> list[Example]:
    """A record an image and a record a caption. The test set's captions are hidden: of it there are only images."""
    kind = "image_info" if split == "test" else "captions"
    content, name = source.json("dataset_coco.json", f"{kind}_{split}2014.json", f"{kind}_{split}2017.json")
    captions: dict[object, list[str]] = {}

    def note(record: dict) -> Example:
        captions.setdefault(identity(record, "image_id"), []).append(text(record, "caption"))
        return Example(str(identity(record, "id")), lambda: None, ())

    images = part(content, "images", name)
    if split != "test":
        source.examples(part(content, "annotations", name), note, f"{name}, annotations")
    places = source.places(*(f"{s}{year}" for s in ("train", "val", "test") for year in (2014, 2017)))

    def make(record: dict) -> Example:
        image_id = identity(record, "id")
        if split != "test" and image_id not in captions:
            raise ValueError(f"image {image_id} has no caption")
        picture = Picture(places, (text(record, "file_name"),))
        return Example(str(image_id), picture, tuple(captions.get(image_id, ())), {"image_id": image_id})

    return source.examples(images, make, name)


def vatex(source: Source, split: str) -> list[Example]:
    """Films are named by their videoID, YouTube id and seconds: Ptf_2VRj-V0_000122_000132.mp4, already cut."""
    names = {
        "train": ("vatex_training_v1.0.json",),
        "val": ("vatex_validation_v1.0.json",),
        "test": ("vatex_public_test_english_v1.1.json", "vatex_public_test_english.json"),
        "private_test": ("vatex_private_test_without_annotations.json",),
    }[split]
    records, name = source.json(*names)
    places = source.places("train", "val", "test", "videos/train", "videos/val", "videos/test")

    def make(record: dict) -> Example:
        video_id = text(record, "videoID")
        captions = () if split == "private_test" else texts(record["enCap"], "enCap")
        return Example(video_id, Film(places, (video_id,)), captions, {"video_id": video_id})

    return source.examples(records, make, name)


def youcook2(source: Source, split: str) -> list[Example]:
    """Each segment is an item, of the key video/segment. Films are those of the whole video, and cut here."""
    content, name = source.json("youcookii_annotations_trainval.json", "youcookii_annotations.json")
    database = part(content, "database", name, dict)
    subset = {"train": "training", "val": "validation"}[split]
    places = source.places("raw_videos")
    segments = []
    for video_id, video in database.items():
        if not isinstance(video, dict) or not isinstance(video.get("annotations"), list):
            source.problems.append(f"{name}, video {video_id}: there is no list of 'annotations'")
        elif video.get("subset") == subset:
            of_video = {"video_id": video_id, "recipe": video.get("recipe_type")}
            segments += [{**of_video, **s} if isinstance(s, dict) else s for s in video["annotations"]]

    def make(record: dict) -> Example:
        video_id = text(record, "video_id")
        start, end = (float(second) for second in record["segment"])
        if not 0 <= start < end:
            raise ValueError(f"a segment from {start:g} to {end:g} s")
        film = Film(places, (video_id, f"{subset}/{record['recipe']}/{video_id}"), start, end)
        fields = {"video_id": video_id, "segment": [start, end]}
        return Example(f"{video_id}/{identity(record, 'id')}", film, (text(record, "sentence"),), fields)

    return source.examples(segments, make, name)
