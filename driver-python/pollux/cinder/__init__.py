"""The Cinder side: the volume driver `pollux.cinder.driver.PolluxDriver`."""
