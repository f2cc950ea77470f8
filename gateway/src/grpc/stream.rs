//! `ModelStreamInfer`: predictions one after the other over one call.
//!
//! The next message is read when the answer before it is on its way, so answers keep their order and
//! a stream holds one message; a client that does not read is held back by HTTP/2's window. An error
//! is an answer and the stream goes on, as with Triton. Each message has a place of its own.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::stream::{self, Stream};
use tonic::{Status, Streaming};

use super::call::Server;
use super::infer::{self, FINAL_ASKED, Head};
use super::message::{
    Choice, InferParameter, ModelInferRequest, ModelInferResponse, ModelStreamInferResponse,
};
use super::status;

/// Marks the last answer to a request; each request has one.
const FINAL: &str = "triton_final_response";
/// The end of a stream without a deadline: its connection ends long before.
const FOREVER: Duration = Duration::from_secs(365 * 24 * 3600);

/// The answers to what comes in.
pub(super) fn answers(
    server: Arc<Server>,
    inbound: Streaming<ModelInferRequest>,
    head: Head,
) -> impl Stream<Item = Result<ModelStreamInferResponse, Status>> + Send + 'static {
    let conversation = Conversation {
        server,
        inbound,
        until: head.arrived + head.timeout.unwrap_or(FOREVER),
        head,
    };
    stream::unfold(Some(conversation), |conversation| async {
        let mut conversation = conversation?;
        match conversation.next().await {
            Ok(answer) => Some((Ok(answer?), Some(conversation))),
            Err(status) => Some((Err(status), None)),
        }
    })
}

struct Conversation {
    server: Arc<Server>,
    inbound: Streaming<ModelInferRequest>,
    head: Head,
    until: Instant,
}

impl Conversation {
    /// The next answer; `None` when the client has said all, an error when the stream cannot go on.
    async fn next(&mut self) -> Result<Option<ModelStreamInferResponse>, Status> {
        // Messages that wait are answered in place: let others of this thread have a turn.
        tokio::task::yield_now().await;
        let asked = tokio::select! {
            biased;
            () = self.server.stop.cancelled() => return Err(status::draining()),
            () = tokio::time::sleep_until(self.until.into()) => {
                return Err(Status::deadline_exceeded("the stream's deadline passed"));
            }
            asked = self.inbound.message() => asked.map_err(status::too_large)?,
        };
        match asked {
            Some(asked) => Ok(Some(self.answer(asked).await)),
            None => Ok(None),
        }
    }

    async fn answer(&self, asked: ModelInferRequest) -> ModelStreamInferResponse {
        let arrived = Instant::now();
        let left = self.until.saturating_duration_since(arrived);
        let head = self.head.of_message(arrived, left);
        let wants_final = asked.parameters.get(FINAL_ASKED).is_some_and(is_true);
        let echo = ModelInferResponse {
            model_name: asked.model_name.clone(),
            model_version: asked.model_version.clone(),
            id: asked.id.clone(),
            ..ModelInferResponse::default()
        };
        let desk = &self.server.desk;
        let answered = match infer::enter(&desk.core) {
            Ok(place) => infer::answer(desk, asked, head, place).await,
            Err(status) => Err(status),
        };
        let (mut response, error_message) = match answered {
            Ok(response) => (response, String::new()),
            // Says which request it was: a client may have several on their way.
            Err(status) => (echo, status.message().to_owned()),
        };
        if wants_final {
            let parameter_choice = Some(Choice::BoolParam(true));
            response
                .parameters
                .insert(FINAL.to_owned(), InferParameter { parameter_choice });
        }
        ModelStreamInferResponse {
            error_message,
            infer_response: Some(response),
        }
    }
}

fn is_true(parameter: &InferParameter) -> bool {
    parameter.parameter_choice == Some(Choice::BoolParam(true))
}
