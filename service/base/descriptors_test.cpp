#include "base/descriptors.h"

#include <fcntl.h>
#include <sys/resource.h>
#include <unistd.h>

#include <boost/test/unit_test.hpp>
#include <vector>

using namespace pollux;

BOOST_AUTO_TEST_CASE(the_limit_is_raised_and_the_last_descriptors_are_known) {
  rlimit limit{};
  BOOST_REQUIRE(getrlimit(RLIMIT_NOFILE, &limit) == 0);
  limit.rlim_max = 256;
  limit.rlim_cur = 100;
  BOOST_REQUIRE(setrlimit(RLIMIT_NOFILE, &limit) == 0);
  const auto raised = raise_descriptor_limit();
  BOOST_REQUIRE(raised);
  BOOST_TEST(*raised == 256U);
  BOOST_TEST(raise_descriptor_limit().value() == 256U);
  std::vector<int> taken;
  int fd = -1;
  while ((fd = open("/dev/null", O_RDONLY | O_CLOEXEC)) >= 0 && !is_last_descriptor(fd)) taken.push_back(fd);
  BOOST_TEST(fd == 256 - 64);
  for (const int one : taken) BOOST_TEST(!is_last_descriptor(one));
  close(fd);
  for (const int one : taken) close(one);
}
