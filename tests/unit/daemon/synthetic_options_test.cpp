// SPDX-License-Identifier: Apache-2.0
#include "daemon/machine/synthetic_options.hpp"
#include "tests/unit/catch.hpp"

using namespace migrationd;

namespace {
std::string fault(std::string_view text) {
  const auto options = parse_synthetic_options(text);
  return options ? "accepted" : options.error().text();
}
}  // namespace

TEST_CASE("SyntheticOptions.defaults_are_an_idle_guest_of_64_MiB") {
  const auto options = parse_synthetic_options("synthetic");
  REQUIRE(options.has_value());
  CHECK(options->ram == 64U << 20);
  CHECK(options->working_set == 64U << 20);
  CHECK(options->touched == 64U << 20);
  CHECK(options->dirty_rate == 0);
  CHECK(options->page_size == 4096);
  CHECK(options->threads == 1);
}

TEST_CASE("SyntheticOptions.reads_every_word") {
  const auto options = parse_synthetic_options(
      "synthetic,ram=64G,page-size=2M,dirty-rate=50M,working-set=32m,touched=4096K,threads=8,seed=77,log=/tmp/x,"
      "dirty-log=sync,prealloc=on,blocked=a disk that is lent");
  REQUIRE(options.has_value());
  CHECK(options->ram == std::uint64_t{64} << 30);
  CHECK(options->page_size == ram::huge_page_size);
  CHECK(options->dirty_rate == 50U << 20);
  CHECK(options->working_set == 32U << 20);
  CHECK(options->touched == 4U << 20);
  CHECK(options->threads == 8);
  CHECK(options->seed == 77);
  CHECK(options->log == "/tmp/x");
  CHECK(options->dirty_log == ram::DirtyLogKind::wp_sync);
  CHECK(options->prealloc);
  CHECK(options->blocked == "a disk that is lent");
}

TEST_CASE("SyntheticOptions.small_guests_shrink_the_defaults") {
  const auto options = parse_synthetic_options("synthetic,ram=1M");
  REQUIRE(options.has_value());
  CHECK(options->working_set == 1U << 20);
  CHECK(options->touched == 1U << 20);
}

TEST_CASE("SyntheticOptions.errors_name_the_word_and_what_was_wanted") {
  CHECK(fault("parked") == "machine 'parked' is not synthetic");
  CHECK(fault("synthetic,") == "machine synthetic: '' is not of the form key=value");
  CHECK(fault("synthetic,ram") == "machine synthetic: 'ram' is not of the form key=value");
  CHECK(fault("synthetic,ram=") == "machine synthetic: ram=: a size (a number, or a number with K, M, G or T) wanted");
  CHECK(fault("synthetic,ram=12Q").find("ram=12Q: a size") != std::string::npos);
  CHECK(fault("synthetic,ram=-1").find("ram=-1: a size") != std::string::npos);
  CHECK(fault("synthetic,ram=99999999999T").find("below 2^64") != std::string::npos);
  CHECK(fault("synthetic,ram=32T").find("is above") != std::string::npos);
  CHECK(fault("synthetic,ram=0") == "machine synthetic: ram=0 is not a multiple of page-size=4096");
  CHECK(fault("synthetic,ram=3M,page-size=2M") ==
        "machine synthetic: ram=3145728 is not a multiple of page-size=2097152");
  CHECK(fault("synthetic,page-size=1G") == "machine synthetic: page-size=1G: 4K or 2M wanted");
  CHECK(fault("synthetic,threads=0") == "machine synthetic: threads=0: 1 to 64 wanted");
  CHECK(fault("synthetic,threads=65") == "machine synthetic: threads=65: 1 to 64 wanted");
  CHECK(fault("synthetic,blocked=") == "machine synthetic: blocked=: a reason wanted");
  CHECK(fault("synthetic,prealloc=1") == "machine synthetic: prealloc=1: on or off wanted");
  CHECK(fault("synthetic,dirty-log=none") == "machine synthetic: dirty-log=none: auto, async or sync wanted");
  CHECK(fault("synthetic,ram=1M,ram=2M") == "machine synthetic: 'ram' stands twice");
  CHECK(fault("synthetic,colour=red").find("unknown word 'colour' (ram, page-size") != std::string::npos);
  CHECK(fault("synthetic,ram=1M,working-set=2M") == "machine synthetic: working-set=2097152 is more than ram=1048576");
  CHECK(fault("synthetic,touched=5") == "machine synthetic: touched=5 is not a multiple of 4096");
  CHECK(fault("synthetic,working-set=4K,threads=2,dirty-rate=1M") ==
        "machine synthetic: working-set=4096 has less than one page for each of 2 threads");
  CHECK(fault("synthetic,log=") == "machine synthetic: log=: a path wanted");
}
