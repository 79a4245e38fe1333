import io
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from webdataset.writer import TarWriter

from shards.errors import ShardError
from shards.members import MAX_KEY, index_tar
from shards.pack import Sample, header, pack

KEYS = st.text(st.characters(exclude_characters="./\0", exclude_categories=("Cs",)), min_size=1, max_size=120)
SAMPLES = st.lists(
    st.builds(
        Sample,
        KEYS,
        st.integers(0, 10**6),
        st.binary(min_size=1, max_size=1100),
        st.sampled_from(["jpg", "bmp", "png"]),
    ),
    min_size=1,
    max_size=5,
    unique_by=lambda sample: sample.key,
)


@given(SAMPLES)
def test_a_tar_has_the_bytes_that_webdataset_writes_and_holds_what_is_said(
    tmp_path_factory: pytest.TempPathFactory, samples: list[Sample]
) -> None:
    ours, theirs = io.BytesIO(), io.BytesIO()
    contents = pack(ours, samples)
    with TarWriter(theirs, encoder=False, mtime=0) as writer:
        for key, label, content, extension in samples:
            writer.write({"__key__": key, extension: content, "cls": str(label).encode()})
    assert ours.getvalue() == theirs.getvalue()
    tar = tmp_path_factory.getbasetemp() / "packed.tar"
    tar.write_bytes(ours.getvalue())
    indexed = index_tar(tar)
    assert contents.rows.tolist() == indexed.rows.tolist()
    assert contents._replace(rows=None) == indexed._replace(rows=None)


@given(st.text(st.characters(max_codepoint=0x17F, exclude_characters="\0"), max_size=130), st.integers(0, 2**33 - 1))
def test_a_header_is_the_one_that_tarfile_writes(name: str, size: int) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.uname, info.gname = size, 0o444, "bigdata", "bigdata"
    assert header(name, size) == info.tobuf()


def test_a_key_that_is_too_long_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match="longer than 512 bytes"):
        pack(io.BytesIO(), [Sample("x" * (MAX_KEY + 1), 0, b"\xff\xd8", "jpg")])
