//! Rebuilds the crate when a migration is added: `sqlx::migrate!` sees only the files that it knew.

fn main() {
    println!("cargo:rerun-if-changed=migrations");
}
