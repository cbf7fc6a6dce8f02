//! Signing keys: the team's API at `/v2/keys` and the operator's API.

use agentpost_proto::api::abbababa::SigningKeys;
use futures::future::join_all;
use serde_json::{Value, json};

use crate::common::office::{Office, office};
use crate::common::web::{Call, Team, new_key};

async fn admin_key(url: &str, admin: &str, team: &Team) -> String {
    let wanted = json!({ "name": "a", "permissions": ["admin"] });
    new_key(url, admin, &team.id, &wanted).await.1
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotation_moves_next_to_current_for_everyone() {
    let office = office().await;
    let other = office.new_team("theirs").await;
    let team_admin = admin_key(&office.urls[0], &office.admin, &office.team).await;
    let wanted = json!({ "name": "r", "permissions": ["read"], "agent_id": "alpha" });
    let (_, reader) = new_key(&office.urls[0], &office.admin, &office.team.id, &wanted).await;
    let keys = |key: &str| Call::get("/v2/keys").bearer(key);
    let first = keys(&reader).to(&office.urls[0]).await.ok();
    let pair: SigningKeys = serde_json::from_value(first.clone()).unwrap();
    assert!(pair.current.starts_with("sig_") && pair.next.starts_with("sig_"));
    assert_ne!(pair.current, pair.next);
    let theirs = keys(&other.key).to(&office.urls[0]).await.ok();
    assert_ne!(theirs, first);
    let of = |id: &str| format!("/admin/v1/teams/{id}/signing-keys");
    for url in &office.urls {
        assert_eq!(keys(&office.team.key).to(url).await.ok(), first);
        assert_eq!(
            Call::get(of(&office.team.id)).bearer(&office.admin).to(url).await.ok(),
            first
        );
    }
    let rotate = Call::new(axum::http::Method::POST, "/v2/keys/rotate");
    rotate
        .clone()
        .bearer(&office.team.key)
        .to(&office.urls[0])
        .await
        .error(403);
    let second = rotate.bearer(&team_admin).to(&office.urls[1]).await.ok();
    assert_eq!(second["current"], first["next"]);
    assert_ne!(second["next"], first["current"]);
    let path = format!("{}/rotate", of(&office.team.id));
    let third = Call::new(axum::http::Method::POST, path)
        .bearer(&office.admin)
        .to(&office.urls[2])
        .await
        .ok();
    assert_eq!(third["current"], second["next"]);
    for url in &office.urls {
        assert_eq!(keys(&reader).to(url).await.ok(), third);
        assert_eq!(keys(&other.key).to(url).await.ok(), theirs);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_rotations_take_each_step_once() {
    let office = office().await;
    let team_admin = admin_key(&office.urls[0], &office.admin, &office.team).await;
    let rotate = |n: usize| {
        let (call, url) = (
            Call::new(axum::http::Method::POST, "/v2/keys/rotate"),
            office.urls[n % 3].clone(),
        );
        let call = call.bearer(&team_admin);
        async move { call.to(&url).await }
    };
    let answers = join_all((0..9).map(rotate)).await;
    let mut done = Vec::new();
    for answer in answers {
        match answer.status {
            200 => done.push(answer.body["current"].as_str().unwrap().to_owned()),
            _ => assert_eq!((answer.status, &answer.body["code"]), (409, &json!("conflict"))),
        }
    }
    assert!(!done.is_empty());
    let team_id = office.team.id.parse().unwrap();
    let secrets = office.cluster.services(0).secrets;
    let mut expected: Vec<String> = (1..=done.len() as u64)
        .map(|n| secrets.signing_key(team_id, n))
        .collect();
    let last = expected.last().cloned();
    done.sort();
    expected.sort();
    assert_eq!(done, expected);
    let now = Call::get("/v2/keys")
        .bearer(&office.team.key)
        .to(&office.urls[2])
        .await
        .ok();
    assert_eq!(now["current"].as_str(), last.as_deref());
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_for_the_team_and_for_operators() {
    let office = Office::start(1, "").await;
    let url = office.urls[0].as_str();
    let team = office.team.clone();
    let other = office.new_team("theirs").await;
    let team_admin = admin_key(url, &office.admin, &team).await;
    let before = Call::get("/v2/keys").bearer(&team.key).to(url).await.ok();
    let unknown = format!("team_{}", "0a".repeat(16));
    for path in ["signing-keys", "signing-keys/rotate"] {
        let call = |team: &str| match path {
            "signing-keys" => Call::get(format!("/admin/v1/teams/{team}/{path}")),
            _ => Call::new(axum::http::Method::POST, format!("/admin/v1/teams/{team}/{path}")),
        };
        call(&team.id).bearer(&team_admin).to(url).await.error(403);
        call(&team.id).bearer("x").to(url).await.error(401);
        call(&team.id).to(url).await.error(401);
        for id in [&unknown, "x", "%ff", &team.id.to_uppercase()] {
            assert_eq!(
                call(id).bearer(&office.admin).to(url).await.error(404),
                "no such team",
                "{id}"
            );
        }
    }
    Call::get("/v2/keys").to(url).await.error(401);
    Call::delete("/v2/keys").bearer(&team.key).to(url).await.error(405);
    Call::get("/v2/keys/rotate")
        .bearer(&team_admin)
        .to(url)
        .await
        .error(405);
    Call::get("/v2/other").bearer(&team.key).to(url).await.error(404);
    let key: Value = Call::get("/v2/keys").bearer(&team.key).to(url).await.ok();
    assert_eq!(key, before);
    assert_ne!(Call::get("/v2/keys").bearer(&other.key).to(url).await.ok(), before);
}
