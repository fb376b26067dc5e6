//! Streams leave the node whole and evenly.

use crate::common::node::Node;
use crate::common::peers;

/// Goal: no packet of 50 prompts at once is lost. The 500-call figure is measured by hand (README).
/// Method: `voxperf spacing` for 5 s; only loss is judged, time is not: the machine may be busy.
#[test]
fn fifty_prompts_at_once_lose_no_packet() {
    let _alone = crate::common::heavy();
    let node = Node::start_for_load();
    let uri = node.uri("9197", "tcp");
    let report =
        peers::voxperf_start(&["spacing", "--to", &uri, "--calls", "50", "--seconds", "5"]).finish().0;
    assert_eq!(report["answered"], 50, "{report:#}");
    assert_eq!(report["lost"].as_u64(), report["dropped_by_receiver"].as_u64(), "{report:#}");
    assert_eq!(report["ended_early"], 0, "{report:#}");
    // 50 packets a second and call.
    let expected = report["expected"].as_u64().expect("a number");
    assert!((12_300..=12_700).contains(&expected), "{report:#}");
    let median = report["spacing_p50_us"].as_u64().expect("a number");
    assert!((18_000..=22_000).contains(&median), "{report:#}");
}
