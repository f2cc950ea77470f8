//! `docs/faults.md` names tests: they exist.

use std::path::Path;

#[test]
fn every_test_that_the_table_of_faults_names_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let page = std::fs::read_to_string(root.join("docs/faults.md")).unwrap();
    let mut named = 0;
    for name in page.split('`').skip(1).step_by(2) {
        let Some((file, test)) = name.split_once("::") else {
            continue;
        };
        if file == "file" {
            continue;
        }
        let ours = Path::new("gateway/tests/gateway").join(file);
        let is_elsewhere = file.contains("/src/") || file.contains("/tests/");
        let path = if is_elsewhere { Path::new(file) } else { &ours };
        let source = root.join(path).with_extension("rs");
        let text = std::fs::read_to_string(&source)
            .unwrap_or_else(|error| panic!("{name}: {}: {error}", source.display()));
        assert!(
            text.contains(&format!("fn {test}(")),
            "{name} does not exist"
        );
        named += 1;
    }
    assert!(named > 50, "{named}");
}
