//! RocksDB's own numbers on the metrics page.

use serde_json::json;

use crate::feast::{ask, pushed, start, write_drivers};
use crate::patience::eventually;

#[test]
fn what_rocksdb_holds_and_does_is_on_the_metrics_page() {
    let folder = tempfile::tempdir().unwrap();
    let mut gateway = start(folder.path(), "");
    let states = "table=\"state\"";
    assert_eq!(gateway.metric("loopgate_store_table_bytes", states), 0.0);
    write_drivers(&gateway);
    pushed(&gateway);
    let written = "work=\"wal_write\"";
    eventually(|| gateway.metric("loopgate_store_io_bytes_total", written) > 0.0);
    eventually(|| gateway.metric("loopgate_store_wal_syncs_total", "") >= 2.0);
    assert!(gateway.metric("loopgate_store_write_buffer_bytes", states) > 0.0);
    gateway.kill();

    // The start after a kill brings what its log holds into tables; the first reads come from there.
    let gateway = start(folder.path(), "");
    assert!(gateway.metric("loopgate_store_table_bytes", states) > 0.0);
    assert!(gateway.metric("loopgate_store_table_keys", states) > 0.0);
    let newest = "level=\"0\",table=\"state\"";
    let newest_too = "table=\"state\",level=\"0\"";
    let files = |labels| gateway.metric("loopgate_store_table_files", labels);
    assert!(files(newest) + files(newest_too) > 0.0);
    let reads = || gateway.metric("loopgate_store_block_reads_total", "");
    let before = reads();
    let drivers =
        json!({"features": ["drivers:trips"], "entities": {"driver_id": [1001, 1002, 5]}});
    assert_eq!(ask(&gateway, "/get-online-features", &drivers).status, 200);
    eventually(|| reads() > before);
    assert!(gateway.metric("loopgate_store_block_cache_bytes", "what=\"used\"") > 0.0);
    eventually(|| gateway.metric("loopgate_store_filtered_gets_total", "") > 0.0);
    for never in ["background_errors_total", "writes_stopped"] {
        assert_eq!(gateway.metric(&format!("loopgate_store_{never}"), ""), 0.0);
    }
}
