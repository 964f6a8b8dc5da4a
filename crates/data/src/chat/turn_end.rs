//! The token that ends a turn in a model's chat template.

use super::Conversation;
use crate::tokenizer::Tokenizer;
use serde_json::json;

impl Tokenizer {
    /// The special token that the chat template puts behind an answer: what a model that was tuned
    /// on conversations ends its answers with. `None` without a template, or where it writes none.
    pub fn turn_end_id(&self) -> Option<u32> {
        // A word that no template changes.
        const ANSWER: &str = "hone2answer";
        let turn = |role: &str, content: &str| json!({ "role": role, "content": content });
        let messages = vec![turn("user", "question"), turn("assistant", ANSWER)];
        let conversation = Conversation { messages, tools: None };
        let text = self.chat_template()?.render(&conversation, false).ok()?;
        let (_, after) = text.rsplit_once(ANSWER)?;
        self.encode(after, false).ok()?.into_iter().find(|&id| self.is_special(id))
    }

    /// Whether a token is left out of texts.
    fn is_special(&self, id: u32) -> bool {
        let text = |skip| self.decode(&[id], skip).unwrap_or_default();
        text(true).is_empty() && !text(false).is_empty()
    }
}
