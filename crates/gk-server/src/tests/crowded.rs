//! A crowd of one kind, and room for the others.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use axum::body::{Body, Bytes};
use axum::extract::ConnectInfo;
use axum::http::{Method, Request};
use gk_model::access::Role;
use gk_model::secret::SecretKind;
use hyper::body::Frame;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tower::ServiceExt as _;

use super::{Api, LOCAL_UID};
use crate::Peer;

/// A body that never comes, and counts who waits for it.
struct Never {
    waiting: Arc<AtomicUsize>,
    is_counted: bool,
}

impl hyper::body::Body for Never {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if !std::mem::replace(&mut self.is_counted, true) {
            self.waiting.fetch_add(1, Ordering::Relaxed);
        }
        Poll::Pending
    }
}

#[tokio::test]
async fn those_who_change_something_crowd_out_neither_readers_nor_agents_nor_health() {
    let api = Api::new().await;
    let (id, agent) = api.join("web-1").await;
    let waiting = Arc::new(AtomicUsize::new(0));
    let mut crowd = JoinSet::new();
    for _ in 0..1024 {
        let body = Body::new(Never { waiting: Arc::clone(&waiting), is_counted: false });
        let request = Request::post("/v1/reservations").extension(ConnectInfo(Peer::Unix { uid: LOCAL_UID }));
        let request = request.header("content-type", "application/json").body(body).unwrap();
        crowd.spawn(api.router.clone().oneshot(request));
    }
    while waiting.load(Ordering::Relaxed) < 1024 {
        tokio::task::yield_now().await;
    }
    let reserve = json!({"instance": "web-1"});
    let refused = api.local(Method::POST, "/v1/reservations", reserve.clone()).await;
    assert_eq!(refused.refusal(), (503, "unavailable", None));
    assert_eq!(refused.header("retry-after"), "1");
    assert_eq!(api.local(Method::GET, "/v1/instances", Value::Null).await.status, 200);
    assert_eq!(api.with_token(&agent, Method::POST, "/v1/reservations", reserve.clone()).await.status, 201);
    let path = format!("/v1/instances/{id}/reserved");
    assert_eq!(api.with_token(&agent, Method::GET, &path, Value::Null).await.status, 200);
    assert_eq!(api.local(Method::GET, "/healthz", Value::Null).await.status, 200);
    crowd.shutdown().await;
    assert_eq!(
        api.local(Method::POST, "/v1/reservations", reserve).await.status,
        201,
        "places are given back"
    );
}

#[tokio::test]
async fn a_token_that_is_out_of_hand_keeps_nobody_else_out() {
    let api = Api::new().await;
    api.join("web-1").await;
    let [wild, calm] = ["wild", "calm"].map(|subject| api.token(SecretKind::Subject, Role::User, subject));
    let (wild, calm) = (wild.await, calm.await);
    let waiting = Arc::new(AtomicUsize::new(0));
    let mut crowd = JoinSet::new();
    for _ in 0..256 {
        let body = Body::new(Never { waiting: Arc::clone(&waiting), is_counted: false });
        let request = Request::post("/v1/reservations")
            .header("host", "localhost")
            .header("authorization", format!("Bearer {}", wild.reveal()));
        let request = request.header("content-type", "application/json").body(body).unwrap();
        crowd.spawn(api.router.clone().oneshot(request));
    }
    while waiting.load(Ordering::Relaxed) < 256 {
        tokio::task::yield_now().await;
    }
    let reserve = || json!({"instance": "web-1"});
    let refused = api.with_token(&wild, Method::POST, "/v1/reservations", reserve()).await;
    assert_eq!((refused.refusal().0, refused.refusal().1), (429, "too_often"));
    assert_eq!(refused.header("retry-after"), "1");
    assert_eq!(api.with_token(&calm, Method::POST, "/v1/reservations", reserve()).await.status, 201);
    assert_eq!(api.local(Method::POST, "/v1/reservations", reserve()).await.status, 201);
    crowd.shutdown().await;
    assert_eq!(api.with_token(&wild, Method::POST, "/v1/reservations", reserve()).await.status, 201);
}
