"""Files that a careless reader follows to other files: playlists, scripts, manifests, containers with references."""

import struct
import zlib
from pathlib import Path

from clips import FORMS, clip


def far_reaching(outside: Path) -> dict[str, bytes]:
    """By name: files whose frames lie in the video `outside`, next to which they shall be put one folder deeper."""
    return _texts(outside) | _mp4s() | _matroskas() | _mixtures(outside)


def _texts(outside: Path) -> dict[str, bytes]:
    near, far = f"../{outside.name}", str(outside)
    hls = "#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:2,\n{}\n#EXT-X-ENDLIST\n"
    mpd = (
        '<?xml version="1.0"?>\n<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" '
        'mediaPresentationDuration="PT2S"><Period><AdaptationSet mimeType="video/mp4"><Representation id="1" '
        'bandwidth="1"><BaseURL>{}</BaseURL></Representation></AdaptationSet></Period></MPD>'
    )
    master = f"#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\n{near}\n"
    key = f'#EXTM3U\n#EXT-X-KEY:METHOD=AES-128,URI="{near}"\n#EXT-X-TARGETDURATION:4\n#EXTINF:2,\n{near}\n'
    start = f'#EXTM3U\n#EXT-X-VERSION:7\n#EXT-X-MAP:URI="{near}"\n#EXT-X-TARGETDURATION:4\n#EXTINF:2,\n{near}\n'
    texts = {
        "hls.m3u8": hls.format(near),
        "hls_absolute.m3u8": hls.format(far),
        "hls_url.m3u8": hls.format(f"file://{far}"),
        "hls_net.m3u8": hls.format("http://127.0.0.1:9/a.ts"),
        "hls_concat.m3u8": hls.format(f"concat:{far}|{far}"),
        "hls_subfile.m3u8": hls.format(f"subfile,,start,0,end,0,,:{far}"),
        "hls_crypto.m3u8": hls.format(f"crypto:{far}"),
        "hls.mp4": hls.format(near),
        "hls.ts": hls.format(near),
        "hls_bom.mp4": "\ufeff" + hls.format(near),
        "hls_late.mp4": "\n\n" + hls.format(near),
        "hls_crlf.mkv": hls.format(near).replace("\n", "\r\n"),
        "hls_master.m3u8": master,
        "hls_key.m3u8": key,
        "hls_start.m3u8": start,
        "list.m3u": f"{near}\n",
        "concat.ffconcat": f"ffconcat version 1.0\nfile {near}\n",
        "concat_absolute.mp4": f"ffconcat version 1.0\nfile '{far}'\n",
        "concat_net.mp4": "ffconcat version 1.0\nfile http://127.0.0.1:9/a.mp4\n",
        "concat_plain.txt": f"file '{near}'\n",
        "concat.webm": f"ffconcat version 1.0\nfile {near}\ninpoint 0\noutpoint 1\n",
        "dash.mpd": mpd.format(near),
        "dash.mp4": mpd.format(far),
        "smooth.ism": f'<SmoothStreamingMedia MajorVersion="2"><StreamIndex Url="{near}"/></SmoothStreamingMedia>',
        "play.smil": f'<smil><body><video src="{near}"/></body></smil>',
        "play.asx": f'<asx version="3.0"><entry><ref href="{near}"/></entry></asx>',
        "play.pls": f"[playlist]\nFile1={near}\nNumberOfEntries=1\n",
        "play.wmv": f"[Reference]\nRef1={near}\n",
        "play.xspf": f'<playlist xmlns="http://xspf.org/ns/0/"><track><location>{near}</location></track></playlist>',
        "play.mov": "rtsptextrtsp://127.0.0.1:9/a",
        "session.sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 9 RTP/AVP 96\n",
        "package.xml": f"<CompositionPlaylist><Id>{near}</Id></CompositionPlaylist>",
        "subtitles.idx": "# VobSub index file, v7 (do not modify this line!)\nid: en, index: 0\n",
        "script.avs": f'FFVideoSource("{near}")\n',
        "script.vpy": f'import vapoursynth\nvapoursynth.core.ffms2.Source("{near}").set_output()\n',
        "graph.lavfi": f"movie={near}",
        "page.html": f'<html><video src="{near}"></video></html>',
    }
    return {name: text.encode() for name, text in texts.items()}


def _mp4s() -> dict[str, bytes]:
    sound = clip(FORMS["mp4"], 4)
    away = {kind: _redirected(sound, kind) for kind in (b"url ", b"alis", b"urn ")}
    reference = _box(b"rdrf", bytes(4) + b"url " + struct.pack(">I", 11) + b"../some.mp4")
    movie = _box(b"ftyp", b"qt  " + bytes(8)) + _box(
        b"moov", _box(b"rmra", _box(b"rmda", reference))
    )
    packed = zlib.compress(_box(b"moov", bytes(100)))
    small = _box(b"cmov", _box(b"dcom", b"zlib") + _box(b"cmvd", struct.pack(">I", 108) + packed))
    return {
        "url.mp4": away[b"url "],
        "alias.mov": away[b"alis"],
        "urn.mp4": away[b"urn "],
        "url.jpg": away[b"url "],
        "reference.mov": movie,
        "packed.mov": _box(b"ftyp", b"qt  " + bytes(8)) + _box(b"moov", small),
    }


def _redirected(video: bytes, kind: bytes) -> bytes:
    """The video with its frames said to lie in another file."""
    inside = video.index(b"url \x00\x00\x00\x01")
    return video[:inside] + kind + bytes(4) + video[inside + 8 :]


def _box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", 8 + len(content)) + kind + content


def _matroskas() -> dict[str, bytes]:
    uid = bytes(range(16))
    chapter = _element(
        "b6", _element("73c4", b"\x01") + _element("91", b"\0") + _element("6e67", uid)
    )
    ordered = _element("45b9", _element("45dd", b"\x01") + _element("b6", _element("91", b"\0")))
    return {
        "next.mkv": _with(_element("1549a966", _element("3eb923", uid))),
        "previous.mkv": _with(_element("1549a966", _element("3cb923", uid))),
        "next_name.mkv": _with(_element("1549a966", _element("3e83bb", b"../some.mkv"))),
        "previous_name.webm": _with(_element("1549a966", _element("3c83ab", b"../some.mkv"))),
        "chapter.mkv": _with(_element("1043a770", _element("45b9", chapter))),
        "ordered.mkv": _with(_element("1043a770", ordered)),
    }


def _with(element: bytes) -> bytes:
    """A live Matroska file, whose segment ends with the file, and one more element."""
    return clip(FORMS["live.mkv"], 4) + element


def _element(id: str, content: bytes) -> bytes:
    return (
        bytes.fromhex(id)
        + struct.pack(">BQ", 1, len(content))[:1]
        + len(content).to_bytes(7, "big")
        + content
    )


def _mixtures(outside: Path) -> dict[str, bytes]:
    hls = f"#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:2,\n../{outside.name}\n".encode()
    concat = f"ffconcat version 1.0\nfile ../{outside.name}\n".encode()
    return {
        "hls_before.ts": hls.ljust(188, b"#") + clip(FORMS["ts"], 4),
        "hls_before.mp4": hls + clip(FORMS["mp4"], 4),
        "concat_before.mkv": concat + clip(FORMS["mkv"], 4),
        "frame%03d.png": b"\x89PNG\r\n\x1a\n" + concat,
        "operations.mxf": b"\x06\x0e\x2b\x34\x02\x05\x01\x01" + concat,
        "DVD.ifo": b"DVDVIDEO-VMG" + concat,
    }
