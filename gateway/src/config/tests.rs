use super::*;

fn serve(config: &str, arguments: &[&str]) -> Result<ServeConfig, ConfigError> {
    #[derive(clap::Parser)]
    struct Cli {
        #[command(flatten)]
        serve: ServeArgs,
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("gateway.toml");
    std::fs::write(&file, config).unwrap();
    let mut line = vec![
        "loopgate",
        "--model",
        "m=x.onnx",
        "--config",
        file.to_str().unwrap(),
    ];
    line.extend(arguments);
    let cli = <Cli as clap::Parser>::try_parse_from(line).unwrap();
    ServeConfig::new(cli.serve)
}

#[test]
fn defaults_are_loopback_and_bounded() {
    let config = serve("", &[]).unwrap();
    assert_eq!(config.listeners.http.to_string(), "127.0.0.1:8000");
    assert!(config.data.is_none() && config.project.is_none());
    assert_eq!(config.files.len(), 1);
}

#[test]
fn a_bucket_is_taken_or_its_key_is_named() {
    let config = serve("[offline]\nurl = \"s3://flights/a\"\n", &[]).unwrap();
    assert_eq!(config.store.offline.unwrap().url(), "s3://flights/a");
    for (file, said) in [
        (
            "url = \"gs://flights\"",
            ":1: `url = \"gs://flights\"`: must be s3://BUCKET/PREFIX",
        ),
        (
            "url = \"s3://flights\"\nregoin = \"x\"",
            ":3: unknown key `regoin`, did you mean `region`?",
        ),
    ] {
        let refused = serve(&format!("[offline]\n{file}\n"), &[])
            .unwrap_err()
            .to_string();
        assert!(refused.ends_with(said), "{refused}");
    }
}

fn exposed(config: &str, arguments: &[&str], keys: usize) -> Result<(), String> {
    let config = serve(config, arguments).unwrap();
    let refused = config.security.refuse_exposed(&config.listeners, keys);
    refused.map_err(|error| error.to_string())
}

#[test]
fn a_public_address_needs_a_key_or_must_be_owned_up_to() {
    let public = ["--http", "0.0.0.0:8000"];
    let refused = exposed("", &public, 0).unwrap_err();
    assert!(refused.contains("insecure = true"), "{refused}");
    assert!(
        refused.contains("http listener on 0.0.0.0:8000"),
        "{refused}"
    );
    assert_eq!(exposed("", &public, 1), Ok(()));
    assert_eq!(exposed("", &[], 0), Ok(()));
    assert!(serve("", &public).unwrap().security.keys_required);
    assert!(!serve("", &[]).unwrap().security.keys_required);
    assert!(
        serve("keys = { required = true }", &[])
            .unwrap()
            .security
            .keys_required
    );
    let open = serve("insecure = true", &[]).unwrap();
    assert!(!open.security.keys_required);
    assert_eq!(open.listeners.http.to_string(), "0.0.0.0:8000");
    assert_eq!(open.listeners.admin.to_string(), "127.0.0.1:8003");
    assert_eq!(exposed("insecure = true", &[], 0), Ok(()));
}

#[test]
fn a_public_admin_address_needs_tls_too() {
    let plain = "[admin]\naddress = \"10.0.0.1:1\"\n";
    let refused = exposed(plain, &[], 1).unwrap_err();
    assert!(
        refused.contains("admin listener on 10.0.0.1:1") && refused.contains("[tls]"),
        "{refused}"
    );
    let safe = format!("{plain}[tls]\ncertificate = \"c.pem\"\nkey = \"/k.pem\"\n");
    assert_eq!(exposed(&safe, &[], 1), Ok(()));
    assert!(exposed(&safe, &[], 0).is_err());
    let tls = serve(&safe, &[]).unwrap().security.tls.unwrap();
    assert!(tls.certificate.is_absolute() && tls.key == Path::new("/k.pem"));
    assert!(serve("[tls]\ncertificate = \"c.pem\"", &[]).is_err());
}

#[test]
fn a_wrong_key_is_named_with_its_line_and_the_nearest_one() {
    let refused = serve("insecure = true\n[http]\nbody_bytes_mx = 3", &[])
        .unwrap_err()
        .to_string();
    for part in [":3:", "body_bytes_mx", "body_bytes_max"] {
        assert!(refused.contains(part), "{refused}");
    }
    assert!(serve("[http]\nbody_bytes_max = 0", &[]).is_err());
}

#[test]
fn a_projects_models_are_read_and_their_aliases_parsed() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("loopgate.toml"), "data = \"d\"").unwrap();
    std::fs::create_dir(folder.path().join("models")).unwrap();
    let model = "service = \"delay\"\nengine = \"trees\"\nfallback = [\"fallback\", \"simple\"]\n\
                 constant = 0.25\nshadow = [\"frozen\", \"other@champion\"]\ndeadline_ms = 50\n[train]\nany = 1\n";
    std::fs::write(folder.path().join("models/delay.toml"), model).unwrap();
    let args = ServeArgs {
        project: Some(folder.path().to_owned()),
        ..ServeArgs::default()
    };
    let config = ServeConfig::new(args.clone()).unwrap();
    assert_eq!(config.data, Some(folder.path().join("d")));
    let project = config.project.unwrap();
    let delay = &project.models[&"delay".parse::<ModelName>().unwrap()];
    assert_eq!(delay.rules.deadline, Some(Duration::from_millis(50)));
    assert_eq!(delay.rules.shadow[1].model.as_deref(), Some("other"));
    assert_eq!(
        delay.rules.shadow[0],
        Alias {
            model: None,
            alias: "frozen".into()
        }
    );

    for wrong in [
        "engine = \"tres\"",
        "shadow = [\"@\"]",
        "constant = nan",
        "canary_share = 1.5",
        "typo = 1",
    ] {
        std::fs::write(folder.path().join("models/delay.toml"), wrong).unwrap();
        let refused = ServeConfig::new(args.clone()).unwrap_err().to_string();
        assert!(refused.contains("delay.toml:1"), "{refused}");
    }
}
