use super::*;

fn read(text: &str) -> Result<Recipe, RecipeError> {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("models")).unwrap();
    std::fs::write(folder.path().join("models/delay.toml"), text).unwrap();
    Recipe::read(folder.path(), "delay")
}

#[test]
fn a_recipe_survives_being_written_and_read() {
    let recipe = read(
        "service = \"delay\"\n[train]\nrows = \"recomputed\"\nholdout = \"14d\"\n[[train.boosted]]\ntrees = 7\n[monitor]\nanything = 1\n",
    )
    .unwrap();
    assert_eq!(recipe.train.holdout, Period::days(14));
    assert_eq!(recipe.train.rows, RowsFrom::Recomputed);
    assert_eq!(recipe.train.boosted[0].trees, 7);
    let json = serde_json::to_string(&recipe.train).unwrap();
    assert_eq!(serde_json::from_str::<Train>(&json).unwrap(), recipe.train);
}

#[test]
fn a_misspelt_key_is_refused_with_file_and_neighbour() {
    let error = read("service = \"delay\"\n[train]\nholdot = \"14d\"\n").unwrap_err();
    let message = error.to_string();
    assert!(message.contains("delay.toml:3"), "{message}");
    assert!(
        message.contains("holdot") && message.contains("holdout"),
        "{message}"
    );
    assert!(
        read("service = \"delay\"\n[trian]\n")
            .unwrap_err()
            .to_string()
            .contains("trian")
    );
}

#[test]
fn a_value_without_sense_names_its_key() {
    let cases = [
        ("[train]\nholdout = \"0s\"", "train.holdout"),
        ("[train]\nboosted = []", "train.boosted"),
        (
            "[train]\n[[train.boosted]]\nrow_share = 1.5",
            "train.boosted.row_share",
        ),
        ("[train]\n[gates]\nconfidence = 1.0", "gates.confidence"),
        ("[gates]\n", "[train]"),
    ];
    for (text, key) in cases {
        let message = read(&format!("service = \"delay\"\n{text}\n"))
            .unwrap_err()
            .to_string();
        assert!(message.contains(key), "{text}: {message}");
    }
    assert!(
        read("[train]\n")
            .unwrap_err()
            .to_string()
            .contains("service")
    );
}
