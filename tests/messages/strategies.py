"""Hypothesis strategies for every message, within the bounds of the wire format."""

from __future__ import annotations

from hypothesis import strategies as st

from dapd.messages.aggregation import AggregationJobContinueHead, AggregationJobInitHead
from dapd.messages.codec import Message
from dapd.messages.collection import (
    AggregateShare,
    AggregateShareAad,
    AggregateShareReq,
    BatchSelector,
    CollectionJobReq,
    CollectionJobResp,
    Query,
)
from dapd.messages.common import (
    BatchMode,
    Extension,
    HpkeCiphertext,
    HpkeConfig,
    HpkeConfigList,
    Interval,
)
from dapd.messages.task import (
    Prio3Count,
    Prio3Histogram,
    Prio3MultihotCountVec,
    Prio3Sum,
    Prio3SumVec,
    TaskConfiguration,
    VdafConfiguration,
    task_interval_extension,
)

u8 = st.integers(0, 2**8 - 1)
u16 = st.integers(0, 2**16 - 1)
u32 = st.integers(0, 2**32 - 1)
u64 = st.integers(0, 2**64 - 1)
id32 = st.binary(min_size=32, max_size=32)
short = st.binary(max_size=40)
filled = st.binary(min_size=1, max_size=40)
ascii_text = st.text(st.characters(max_codepoint=127), min_size=1, max_size=40)

intervals = st.builds(Interval, u64, u64)
ciphertexts = st.builds(HpkeCiphertext, u8, filled, filled)
hpke_configs = st.builds(HpkeConfig, u8, u16, u16, u16, filled)
hpke_config_lists = st.builds(
    HpkeConfigList,
    st.lists(hpke_configs, min_size=1, max_size=4, unique_by=lambda each: each.id).map(tuple),
).filter(lambda configs: sum(len(each.encode()) for each in configs.configs) >= 10)
extensions = st.lists(st.builds(Extension, u16, short), max_size=3).map(tuple)
task_extensions = st.lists(
    st.builds(Extension, u16.filter(lambda codepoint: codepoint != 1), short)
    | intervals.map(task_interval_extension),
    max_size=3,
).map(tuple)
vdafs: st.SearchStrategy[VdafConfiguration] = st.one_of(
    st.builds(Prio3Count),
    st.builds(Prio3Sum, u64),
    st.builds(Prio3SumVec, u32, u64, u32),
    st.builds(Prio3Histogram, u32, u32),
    st.builds(Prio3MultihotCountVec, u32, u32, u64),
)
task_configurations = st.builds(
    TaskConfiguration,
    task_info=filled,
    leader_aggregator_endpoint=ascii_text,
    helper_aggregator_endpoint=ascii_text,
    time_precision=u64,
    min_batch_size=u64,
    batch_mode=st.sampled_from(BatchMode),
    vdaf=vdafs,
    extensions=task_extensions,
)
queries = st.builds(Query, st.none() | intervals)
selectors = st.builds(BatchSelector, intervals | id32)
collection_job_reqs = st.builds(CollectionJobReq, queries, short, extensions)
messages: st.SearchStrategy[Message] = st.one_of(
    intervals,
    ciphertexts,
    hpke_configs,
    hpke_config_lists,
    vdafs,
    task_configurations,
    queries,
    selectors,
    collection_job_reqs,
    st.builds(CollectionJobResp, u64, intervals, ciphertexts, ciphertexts),
    st.builds(AggregateShareReq, collection_job_reqs, selectors, u64, id32),
    st.builds(AggregateShare, ciphertexts),
    st.builds(AggregateShareAad, id32, task_configurations, collection_job_reqs),
)
init_heads = st.builds(AggregationJobInitHead, u8, short, extensions)
continue_heads = st.builds(AggregationJobContinueHead, u16)
