// SPDX-License-Identifier: Apache-2.0
#include "postcopy/stream_window.hpp"
#include "tests/unit/catch.hpp"

using migrationd::postcopy::StreamWindow;
using namespace std::chrono_literals;

namespace {
const StreamWindow::TimePoint start = StreamWindow::TimePoint() + 1h;
}

TEST_CASE("StreamWindow.closes_when_enough_is_unanswered") {
  StreamWindow window;
  std::uint32_t first = 0;
  for (std::uint32_t i = 0; i < StreamWindow::many; ++i) {
    REQUIRE(window.open(start));
    const std::uint32_t value = window.piece_sent();
    if (i == 0) first = value;
  }
  CHECK_FALSE(window.open(start));
  CHECK(window.answered(first));
  CHECK(window.open(start));
}

TEST_CASE("StreamWindow.is_small_for_a_while_after_a_request") {
  StreamWindow window;
  for (std::uint32_t i = 0; i < StreamWindow::few; ++i) window.piece_sent();
  CHECK(window.open(start));
  window.requested(start);
  CHECK_FALSE(window.open(start + 1ms));
  CHECK(window.open(start + StreamWindow::asked_lately));
}

TEST_CASE("StreamWindow.takes_no_answers_that_are_not_due") {
  StreamWindow window;
  const std::uint32_t one = window.piece_sent();
  const std::uint32_t two = window.piece_sent();
  CHECK_FALSE(window.answered(two + 1));
  CHECK_FALSE(window.answered(4));  // QEMU's own
  CHECK_FALSE(window.answered(0));
  CHECK_FALSE(window.answered(0xffffffff));
  CHECK(window.answered(two));  // answers come in order: one is answered too
  CHECK_FALSE(window.answered(one));
  CHECK_FALSE(window.answered(two));
}

TEST_CASE("StreamWindow.stays_wide_beside_a_preempt_channel") {
  StreamWindow window(StreamWindow::many);
  window.requested(start);
  for (std::uint32_t i = 0; i < StreamWindow::many; ++i) {
    CHECK(window.open(start));
    window.piece_sent();
  }
  CHECK(!window.open(start));
}

TEST_CASE("StreamWindow.knows_when_everything_was_answered") {
  StreamWindow window;
  CHECK(window.all_answered());
  const std::uint32_t one = window.piece_sent();
  const std::uint32_t two = window.piece_sent();
  CHECK(window.answered(one));
  CHECK_FALSE(window.all_answered());
  CHECK(window.answered(two));
  CHECK(window.all_answered());
}
