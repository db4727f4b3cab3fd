"""The families in plain torch that the zoo has: what builds a block, what is between blocks, what blocks see."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import zoo_diverse as diverse
import zoo_kernels as kernels
import zoo_lookalikes as lookalikes
import zoo_mobile as mobile
import zoo_repvgg as repvgg
import zoo_sharp as sharp
from torch import nn
from zoo_blocks import Family


class Row(NamedTuple):
    """A family; `sees` is a key of `zoo_blocks.ENTRIES`."""

    family: Family
    activation: Callable[[], nn.Module]
    sees: str = "image"


FAMILIES = [
    Row(repvgg.repvgg_raw_identity, nn.ReLU),
    Row(repvgg.csla, nn.ReLU),
    Row(repvgg.qarepvgg, nn.ReLU),
    Row(repvgg.qarepvgg_avg, nn.ReLU),
    Row(repvgg.qarepvgg_alpha, nn.ReLU),
    Row(repvgg.qarepvgg_nested, nn.ReLU),
    Row(repvgg.repconv_yolov7, nn.SiLU),
    Row(repvgg.yolov7_head, nn.SiLU),
    Row(repvgg.repconv_yolov9, nn.SiLU),
    Row(repvgg.conv2, nn.SiLU),
    Row(repvgg.pp_yoloe, nn.SiLU),
    Row(repvgg.bottlerep, nn.ReLU),
    Row(repvgg.frozen, nn.SiLU),
    Row(repvgg.katago, nn.ReLU),
    Row(repvgg.rsbb, nn.ReLU),
    Row(repvgg.repvgg_1d, nn.ReLU, "sequence"),
    Row(repvgg.repvgg_causal, nn.ReLU, "sequence"),
    Row(repvgg.repvgg_3d, nn.ReLU, "volume"),
    Row(kernels.acnet, nn.ReLU),
    Row(kernels.acnet_crop, nn.ReLU),
    Row(kernels.textnet, nn.ReLU),
    Row(kernels.repnext, nn.GELU),
    Row(kernels.repnext_chunk, nn.GELU),
    Row(kernels.yolov10, nn.SiLU),
    Row(kernels.replknet, nn.ReLU),
    Row(kernels.unireplknet, nn.GELU),
    Row(kernels.unireplknet_5, nn.GELU),
    Row(kernels.unireplknet_9, nn.GELU),
    Row(kernels.unireplknet_13, nn.GELU),
    Row(kernels.replkfpn, nn.Hardswish),
    Row(kernels.slak, nn.GELU),
    Row(kernels.pkinet, nn.SiLU),
    Row(kernels.pkinet_v2, nn.SiLU),
    Row(diverse.dbb, nn.ReLU),
    Row(diverse.dbb_depthwise, nn.ReLU),
    Row(diverse.orepa, nn.ReLU),
    Row(diverse.orepa_1x1, nn.ReLU),
    Row(diverse.orepa_repvgg, nn.ReLU),
    Row(diverse.orepa_large, nn.ReLU),
    Row(diverse.diracnet, nn.ReLU),
    Row(diverse.weight_norm, nn.ReLU),
    Row(diverse.deep_stem, nn.ReLU),
    Row(mobile.lcnetv2, nn.Hardswish),
    Row(mobile.lcnetv3, nn.Hardswish),
    Row(mobile.lcnetv3_rec, nn.Hardswish),
    Row(mobile.lcnetv4, nn.Hardswish),
    Row(mobile.iformer, nn.GELU),
    Row(mobile.efficientvit, nn.ReLU),
    Row(mobile.mobileclip_text, nn.GELU, "row"),
    Row(mobile.levit, nn.Hardswish, "tokens"),
    Row(mobile.slab, nn.GELU, "tokens"),
    Row(mobile.heads, nn.ReLU, "vector"),
    Row(sharp.ecbsr, nn.PReLU),
    Row(sharp.edbb, nn.PReLU),
    Row(sharp.fmen, nn.LeakyReLU),
    Row(sharp.plainusr, nn.SiLU),
    Row(sharp.span, nn.SiLU),
    Row(sharp.sesr, nn.PReLU),
    Row(sharp.expandnet, nn.ReLU),
    Row(sharp.omnishift, nn.ReLU),
    Row(sharp.rtmosr, nn.GELU),
    Row(sharp.mobileie, nn.PReLU),
    Row(sharp.vanillanet, nn.ReLU),
    Row(lookalikes.msca, nn.GELU),
    Row(lookalikes.lka, nn.GELU),
    Row(lookalikes.poolformer, nn.ReLU),
    Row(lookalikes.dpt, nn.ReLU),
    Row(lookalikes.lightconv, nn.ReLU),
    Row(lookalikes.bottleneck, nn.ReLU),
    Row(lookalikes.separable, nn.ReLU),
    Row(lookalikes.short_conv, nn.ReLU),
    Row(lookalikes.res2net, nn.ReLU),
    Row(lookalikes.tdnn, nn.ReLU),
    Row(lookalikes.csprep, nn.ReLU),
    Row(lookalikes.prenorm, nn.ReLU),
    Row(lookalikes.square_twice, nn.ReLU),
]
